"""Who gets a transient message: subscriptions of this bus, and of those of other processes as far as they told."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from groundplane.bus.port import Deliver
from groundplane.bus.subjects import has_wildcard, matches

_ROUTES_KEPT = 4096


class Local:
    """A subscription here."""

    __slots__ = ("deliver", "pattern", "team")

    def __init__(self, pattern: str, team: str, deliver: Deliver) -> None:
        self.pattern = pattern
        self.team = team
        self.deliver = deliver


class Interest(NamedTuple):
    """A subscription of another session: `members` share the work of `team` there, "" is no team."""

    session: int
    pattern: str
    team: str
    members: int


Member: TypeAlias = "Local | int"


def shared_pattern(local: Local) -> str:
    """The pattern that others are told of all that follow a command of their own here, as one; "" for any other
    subscription. Each telling is a write, which would be most of the work of a small command.
    """
    parts = local.pattern.split(".")
    follows = len(parts) == 3 and parts[0] == "commands" and parts[1] in ("progress", "callback")
    return f"commands.{parts[1]}.*" if follows and not local.team else ""


class Team:
    """Those of one group and pattern, here and elsewhere, in turn."""

    __slots__ = ("key", "members", "turn")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.members: list[Member] = []
        self.turn = 0

    def next(self, without: frozenset[int]) -> Member | None:
        """Whose turn it is; sessions in `without` are passed over. None where nobody is left."""
        for _ in self.members:
            self.turn = (self.turn + 1) % len(self.members)
            member = self.members[self.turn]
            if isinstance(member, Local) or member not in without:
                return member
        return None


class Route(NamedTuple):
    """Where the messages of one subject go; `is_here`: to somebody, and to nobody elsewhere."""

    here: tuple[Local, ...]
    sessions: tuple[int, ...]
    teams: tuple[Team, ...]
    is_here: bool


NOWHERE = Route((), (), (), is_here=False)


class Switch:
    """The subscriptions that this bus knows of."""

    def __init__(self) -> None:
        self._local: dict[tuple[str, str], list[Local]] = {}
        self._wide: set[tuple[str, str]] = set()
        self._remote: list[Interest] = []
        self._teams: dict[tuple[str, str], Team] = {}
        self._routes: dict[str, Route] = {}

    def add(self, local: Local) -> int:
        """Add a subscription here; how many of its pattern and team there are now."""
        key = (local.pattern, local.team)
        members = self._local.setdefault(key, [])
        members.append(local)
        self._changed(key)
        return len(members)

    def remove(self, local: Local) -> int:
        """Take it away; how many of its pattern and team are left."""
        key = (local.pattern, local.team)
        members = self._local.get(key, [])
        if local in members:
            members.remove(local)
        if not members:
            self._local.pop(key, None)
        self._changed(key)
        return len(members)

    def learn(self, interests: list[Interest]) -> None:
        """What all others subscribe to now."""
        self._remote = interests
        self._rebuild()

    def route(self, subject: str) -> Route:
        """Where a message on `subject` goes."""
        found = self._routes.get(subject)
        if found is None:
            if len(self._routes) >= _ROUTES_KEPT:
                self._routes.clear()
            found = self._routes[subject] = self._find(subject)
        return found

    def members(self, pattern: str, team: str) -> list[Local]:
        """Those of a team that are here."""
        return self._local.get((pattern, team), [])

    def _find(self, subject: str) -> Route:
        here = list(self._local.get((subject, ""), ()))
        for pattern, team in self._wide:
            if matches(pattern, subject):
                here += self._local[pattern, team]
        sessions = {one.session for one in self._remote if not one.team and _fits(one.pattern, subject)}
        teams = [team for (pattern, _), team in self._teams.items() if _fits(pattern, subject)]
        members = [*here, *(member for team in teams for member in team.members)]
        is_here = bool(members) and not sessions and all(isinstance(one, Local) for one in members)
        return Route(tuple(here), tuple(sorted(sessions)), tuple(teams), is_here)

    def _changed(self, key: tuple[str, str]) -> None:
        pattern, team = key
        if team:
            self._rebuild()
        elif not has_wildcard(pattern):
            self._routes.pop(pattern, None)
        else:
            self._routes.clear()
            (self._wide.add if key in self._local else self._wide.discard)(key)

    def _rebuild(self) -> None:
        self._routes.clear()
        members: dict[tuple[str, str], list[Member]] = {}
        for (pattern, team), locals_ in self._local.items():
            if team:
                members.setdefault((pattern, team), []).extend(locals_)
        for one in self._remote:
            if one.team:
                members.setdefault((one.pattern, one.team), []).extend([one.session] * one.members)
        self._teams = {key: self._teams.get(key) or Team(key) for key in members}
        for key, found in members.items():
            self._teams[key].members = found


def _fits(pattern: str, subject: str) -> bool:
    return pattern == subject or (has_wildcard(pattern) and matches(pattern, subject))
