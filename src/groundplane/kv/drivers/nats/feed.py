"""Changes as one watcher hears them, over a `Watcher` that is never deaf."""

from __future__ import annotations

from groundplane.backends.nats import Changed, Gone, Synced, Watcher
from groundplane.core.errors import Closed
from groundplane.kv.drivers.nats.messages import Names, change_of
from groundplane.kv.port import Change, ChangeFeed, ChangeKind, Changes, Selection


class NatsFeed:
    """The feed of one watch."""

    def __init__(self, watcher: Watcher, names: Names, selection: Selection) -> None:
        self._watcher = watcher
        self._names = names
        self._selection = selection
        self._told: set[str] | None = set()
        """Keys that were told before everything had come: removals of others are none of the watch's."""

    @property
    def flowing(self) -> bool:
        """See the port."""
        return self._watcher.hearing

    async def receive(self) -> Changes:
        """See the port."""
        async for event in self._watcher:
            if isinstance(event, Synced):
                self._told = None
                return Changes(changes=[], synced=True)
            change = self._change(event)
            if change is not None:
                return Changes(changes=[change], synced=self._told is None)
        raise Closed("kv: the watch was closed")

    def _change(self, event: Changed | Gone) -> Change | None:
        key = self._names.key(subject_of(event))
        if key is None or not key.startswith(self._selection.prefix):
            return None
        if isinstance(event, Gone):
            return Change(kind=ChangeKind.DELETE, key=key, revision=event.seq)
        change = change_of(key, event.message)
        if self._told is not None and self._selection.after is None:
            if change.kind is not ChangeKind.PUT and key not in self._told:
                return None  # it was gone when the watch began
            self._told.add(key)
        return change


def subject_of(event: Changed | Gone) -> str:
    """Whose event it is."""
    return event.subject if isinstance(event, Gone) else event.message.subject


_: type[ChangeFeed] = NatsFeed
