"""Key-value storage against a model: written, removed, expired, fenced and read through two handles in any order; and
keys on NATS, which come back from their subjects as they were.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from groundplane.backends.sqlite import Database
from groundplane.core.errors import AlreadyExists, Conflict, NotFound
from groundplane.core.fencing import Fence
from groundplane.kv import KV, ChangeKind, Watch
from groundplane.kv.drivers.embedded import EmbeddedKV
from groundplane.kv.drivers.embedded import rows as tables
from groundplane.kv.drivers.embedded.driver import MIGRATIONS
from groundplane.kv.drivers.nats.names import decoded, encoded, filters
from groundplane.kv.keys import KEY_CHARS_MAX
from groundplane.kv.port import TOMBSTONES_KEPT_S, BucketOptions

T = TypeVar("T")

KEYS = st.sampled_from(["a", "a/b", "a/c", "b", "é"])
VALUES = st.binary(max_size=3)
TTLS = st.sampled_from([None, None, 0.5, 2.0])
HISTORY = 3


class HandClock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


class KVMachine(RuleBasedStateMachine):
    """Two handles of one file, a watch, and a dict: key → (value, revision, when it expires)."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.stack = AsyncExitStack()
        self.clock = HandClock()
        self.live: dict[str, tuple[bytes, int, int | None]] = {}
        self.older: dict[str, list[tuple[bytes | None, int, int | None]]] = {}
        self.terms: dict[str, int] = {}
        self.turn = itertools.cycle((0, 1))
        self.revision = 0
        self.known: dict[str, bytes] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @initialize()
    def opened(self) -> None:
        self.handles = [self.run(self._open()) for _ in range(2)]
        self.watch: Watch = self.run(self.stack.enter_async_context(self.handles[0].watch()))

    async def _open(self) -> KV:
        database = await self.stack.enter_async_context(
            Database.open(Path(self.folder.name) / "plane.db", [MIGRATIONS])
        )
        options = BucketOptions(bucket="b", namespace="n", state=self.folder.name, history=HISTORY, ttl=True)
        bucket = await database.write(lambda tx: tables.make_bucket(tx, options))
        kv = KV(EmbeddedKV(database, bucket, options, self.clock))
        self.stack.push_async_callback(kv.aclose)
        return kv

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()
        self.folder.cleanup()

    @property
    def kv(self) -> KV:
        return self.handles[next(self.turn)]

    # -- the model

    def expire(self) -> None:
        for key in [key for key, (_, _, until) in self.live.items() if until is not None and until <= self.clock.ms]:
            del self.live[key]
            self.older.pop(key, None)

    def wrote(self, key: str, value: bytes, revision: int, ttl_s: float | None) -> None:
        assert revision > self.revision
        self.revision = revision
        until = None if ttl_s is None else self.clock.ms + round(ttl_s * 1000) + 1  # the clock is rounded down
        if until is not None:
            self.older.pop(key, None)
        elif key in self.live:
            self.keep(key)
        self.live[key] = (value, revision, until)

    def keep(self, key: str) -> None:
        self.older[key] = [self.live[key], *self.older.get(key, [])]

    def values_of(self, key: str) -> list[bytes]:
        """Those that must be in the history, newest first, as long as no removal was written between them."""
        first = [self.live[key]] if key in self.live else []
        return [value for value, _, until in [*first, *self.older.get(key, [])]
                if value is not None and (until is None or until > self.clock.ms)]  # fmt: skip

    # -- what is done

    @rule(key=KEYS, value=VALUES, ttl_s=TTLS)
    def put(self, key: str, value: bytes, ttl_s: float | None) -> None:
        self.expire()
        self.wrote(key, value, self.run(self.kv.put(key, value, ttl_s=ttl_s)), ttl_s)

    @rule(key=KEYS, value=VALUES, ttl_s=TTLS)
    def create(self, key: str, value: bytes, ttl_s: float | None) -> None:
        self.expire()
        try:
            revision = self.run(self.kv.create(key, value, ttl_s=ttl_s))
        except AlreadyExists as error:
            told = error.details
            assert told == {"key": key, "revision": self.live[key][1]}
        else:
            assert key not in self.live
            self.wrote(key, value, revision, ttl_s)

    @rule(key=KEYS, value=VALUES, ttl_s=TTLS, off=st.integers(0, 1))
    def update(self, key: str, value: bytes, ttl_s: float | None, off: int) -> None:
        self.expire()
        expected = self.live[key][1] + off if key in self.live else 1
        try:
            revision = self.run(self.kv.update(key, value, revision=expected, ttl_s=ttl_s))
        except NotFound:
            assert key not in self.live
        except Conflict as error:
            told = error.details
            assert off == 1
            assert told == {"key": key, "expected": expected, "actual": self.live[key][1]}
        else:
            assert (key in self.live, off) == (True, 0)
            self.wrote(key, value, revision, ttl_s)

    @rule(key=KEYS, purge=st.booleans(), conditional=st.booleans(), off=st.integers(0, 1))
    def remove(self, key: str, purge: bool, conditional: bool, off: int) -> None:
        self.expire()
        kv = self.kv
        expected = self.live[key][1] + off if conditional and key in self.live else None
        try:
            self.run((kv.purge if purge else kv.delete)(key, revision=expected))
        except Conflict:
            assert (expected is not None, off) == (True, 1)
            return
        assert expected is None or off == 0
        self.removed(key, purge)

    def removed(self, key: str, purge: bool = False) -> None:
        if purge:
            self.older.pop(key, None)
        elif key in self.live:
            self.keep(key)
        if key in self.live:
            self.older[key] = [(None, 0, None), *self.older.get(key, [])] if not purge else []
            self.revision += 1
            del self.live[key]

    @rule(values=st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), ttl_s=TTLS)
    def put_many(self, values: dict[str, bytes], ttl_s: float | None) -> None:
        self.expire()
        for key, revision in self.run(self.kv.put_many(values, ttl_s=ttl_s)).items():
            self.wrote(key, values[key], revision, ttl_s)

    @rule(prefix=st.sampled_from(["a", "a/", "b", "c"]))
    def clear(self, prefix: str) -> None:
        self.expire()
        keys = [key for key in self.live if key.startswith(prefix)]
        assert self.run(self.kv.clear(prefix)) == len(keys)
        for key in keys:
            self.removed(key)

    @rule(key=KEYS, value=VALUES, term=st.integers(1, 5), name=st.sampled_from(["one", "two"]))
    def fenced(self, key: str, value: bytes, term: int, name: str) -> None:
        self.expire()
        try:
            revision = self.run(self.kv.put(key, value, fence=Fence(name, term)))
        except Conflict as error:
            told = error.details
            assert told == {"name": name, "term": term, "actual": self.terms[name]}
            assert term < self.terms[name]
        else:
            assert term >= self.terms.get(name, 0)
            self.terms[name] = term
            self.wrote(key, value, revision, None)

    @rule(ms=st.sampled_from([1, 499, 500, 2000, 4_000_000]))
    def wait(self, ms: int) -> None:
        if ms > TOMBSTONES_KEPT_S * 1000:
            self.follow()  # who does not listen for as long as removals are kept does not hear of them
        self.clock.ms += ms
        self.expire()

    @rule()
    def forget(self) -> None:
        """What is left of keys that were removed an hour ago goes, with their history."""
        driver = self.handles[0].driver
        assert isinstance(driver, EmbeddedKV)
        database, bucket = driver.native, driver._bucket_id
        while self.run(database.write(lambda tx: tables.forget_removals(tx, bucket, self.clock.ms))):
            pass

    @rule()
    def follow(self) -> None:
        """The watcher ends where the model is."""
        self.expire()
        revision = self.run(self.kv.put("~end", b""))
        self.wrote("~end", b"", revision, None)
        while self.watch.revision < revision:
            change = self.run(self.watch.receive(10))
            assert change is not None
            if change.kind is ChangeKind.PUT:
                self.known[change.key] = change.value
            else:
                self.known.pop(change.key, None)
        assert self.known == {key: value for key, (value, _, _) in self.live.items()}

    @invariant()
    def all_of_it_is_as_the_model_says(self) -> None:
        if not hasattr(self, "handles"):
            return
        self.expire()
        keys = ["a", "a/b", "a/c", "b", "é", "~end"]
        for kv in self.handles:
            entries = self.run(kv.get_many(keys))
            found = {key: (entry.value, entry.revision) for key, entry in entries.items()}
            assert found == {key: (self.live[key][0], self.live[key][1]) for key in keys if key in self.live}
            assert self.run(kv.keys()).items == sorted(self.live)
            assert self.run(kv.keys("a/")).items == sorted(key for key in self.live if key.startswith("a/"))
        for key in keys:
            history = [entry.value for entry in self.run(self.handles[0].history(key))]
            assert history == self.values_of(key)[: len(history)]
            assert len(history) <= HISTORY
            assert (key in self.live) <= (len(history) >= 1)
        status = self.run(self.handles[1].status())
        assert status.keys == len(self.live)
        assert status.revision >= self.revision
        self.revision = status.revision


TestKVMachine = KVMachine.TestCase
TestKVMachine.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestKVMachine.pytestmark = [pytest.mark.req("KV-01.1", "KV-03", "KV-04", "KV-08", "KV-14", "KV-15.1", "LEAD-02")]

PRINTABLE = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Co", "Cn", "Zl", "Zp"]).filter(str.isprintable)
    | st.sampled_from("./ =*>"),
    min_size=1,
    max_size=40,
)


@pytest.mark.req("KV-13.1")
@given(key=PRINTABLE)
@example(key="." * KEY_CHARS_MAX)
@example(key="/" * KEY_CHARS_MAX)
def test_every_key_has_tokens_that_nats_takes_and_comes_back(key: str) -> None:
    tokens = encoded(key)
    assert decoded(tokens) == key
    assert all(tokens.split("."))
    assert tokens.isascii()
    assert not set(tokens) & set(" \t*>$")


@pytest.mark.req("KV-13.1")
@given(tokens=st.text("ab./=2EF-_", min_size=1, max_size=12))
def test_no_two_writings_are_the_same_key(tokens: str) -> None:
    key = decoded(tokens)
    assert key is None or encoded(key) == tokens


@pytest.mark.req("KV-06", "KV-13.1")
@given(key=PRINTABLE, cut=st.integers(0, 40))
def test_the_filters_of_a_prefix_match_every_key_that_begins_with_it(key: str, cut: int) -> None:
    tokens = encoded(key)
    chosen = filters(key[:cut])
    assert any(
        tokens == one or (one.endswith(">") and tokens.startswith(one[:-1]) and len(tokens) >= len(one))
        for one in chosen
    )
