"""What is known of keys, for how long, and in how much space."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.core.errors import ResourceExhausted, Unavailable
from groundplane.security import verifying
from groundplane.security.keys import digest_of, key_id_of, new_key
from groundplane.security.port import ApiKey, FoundKey
from groundplane.security.verifying import KNOWN_S, KeyVerifier

pytestmark = [pytest.mark.anyio, pytest.mark.req("GATE-08")]


class HandClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now_ms(self) -> int:
        return round(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds


class Keys:
    """Keys by id; counts the looks, which wait for `go` where it is cleared."""

    def __init__(self) -> None:
        self.found: dict[str, FoundKey] = {}
        self.looks = 0
        self.away = False
        self.go = asyncio.Event()
        self.go.set()

    def make(self, left_s: float | None = None) -> str:
        key_id, secret = new_key()
        key = ApiKey(key_id=key_id, name="k", principal="alice", scopes=("tools:*",), created_at=1)
        self.found[key_id] = FoundKey(key=key, digest=digest_of(secret.reveal()), left_s=left_s)
        return secret.reveal()

    async def find(self, key_id: str) -> FoundKey | None:
        self.looks += 1
        await self.go.wait()
        if self.away:
            raise Unavailable("security: the store is away")
        return self.found.get(key_id)


async def test_a_key_is_looked_up_once_in_a_while_and_a_revocation_holds_within_that_time() -> None:
    keys, clock = Keys(), HandClock()
    verifier, text = KeyVerifier(keys.find, clock), keys.make()
    for _ in range(100):
        assert await verifier.verify(text) is not None
    assert keys.looks == 1
    keys.found.clear()
    clock.seconds += KNOWN_S - 0.01
    assert await verifier.verify(text) is not None
    clock.seconds += 0.02
    assert await verifier.verify(text) is None
    assert KNOWN_S <= 5.0


async def test_a_key_that_expires_sooner_is_known_until_then() -> None:
    keys, clock = Keys(), HandClock()
    verifier, text = KeyVerifier(keys.find, clock), keys.make(left_s=1.0)
    assert await verifier.verify(text) is not None
    keys.found.clear()
    clock.seconds += 1.01
    assert await verifier.verify(text) is None


async def test_many_that_ask_at_once_share_one_look_and_one_that_leaves_ends_it_for_nobody() -> None:
    keys = Keys()
    verifier, text = KeyVerifier(keys.find, HandClock()), keys.make()
    keys.go.clear()
    asking = [asyncio.create_task(verifier.verify(text)) for _ in range(20)]
    while not keys.looks:
        await asyncio.sleep(0)
    asking[0].cancel()
    keys.go.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(getattr(one, "principal", None) == "alice" for one in answers[1:])
    assert keys.looks == 1


async def test_what_cannot_be_a_key_is_refused_without_a_look() -> None:
    keys = Keys()
    verifier = KeyVerifier(keys.find, HandClock())
    for text in ("", "x", "gp_", "gp_short_secret", "gp_" + "A" * 16 + "_" + "a" * 43, "x" * 10_000_000):
        assert await verifier.verify(text) is None
    assert keys.looks == 0


async def test_keys_that_open_nothing_are_remembered_in_bounded_space_and_push_out_no_good_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verifying, "KNOWN_MAX", 50)
    keys = Keys()
    verifier, good = KeyVerifier(keys.find, HandClock()), keys.make()
    await verifier.verify(good)
    bad = [new_key()[1].reveal() for _ in range(200)]
    for text in bad:
        assert await verifier.verify(text) is None
    assert await verifier.verify(bad[-1]) is None
    assert keys.looks == 201
    assert len(verifier._refused) == 50
    assert await verifier.verify(good) is not None
    assert keys.looks == 201


async def test_a_store_that_is_away_is_an_error_and_is_asked_again() -> None:
    keys = Keys()
    verifier, text = KeyVerifier(keys.find, HandClock()), keys.make()
    keys.away = True
    with pytest.raises(Unavailable):
        await verifier.verify(text)
    keys.away = False
    assert await verifier.verify(text) is not None


async def test_looks_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "WAITING_MAX", 5)
    keys = Keys()
    verifier = KeyVerifier(keys.find, HandClock())
    keys.go.clear()
    asking = [asyncio.create_task(verifier.verify(new_key()[1].reveal())) for _ in range(10)]
    while sum(one.done() for one in asking) < 5:
        await asyncio.sleep(0)
    keys.go.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(one, ResourceExhausted) for one in answers) == 5
    assert answers.count(None) == 5


async def test_a_login_that_was_made_with_a_key_ends_with_the_key() -> None:
    keys, clock = Keys(), HandClock()
    verifier, text = KeyVerifier(keys.find, clock), keys.make()
    key_id = key_id_of(text)
    assert key_id is not None
    caller = await verifier.caller_of(key_id)
    assert caller is not None
    assert caller.principal == "alice"
    keys.found.clear()
    clock.seconds += KNOWN_S
    assert await verifier.caller_of(key_id) is None


async def test_uses_are_noted_for_good_keys_alone() -> None:
    keys = Keys()
    verifier, text = KeyVerifier(keys.find, HandClock()), keys.make()
    await verifier.verify(text)
    await verifier.verify(new_key()[1].reveal())
    assert verifier.used == {key_id_of(text)}


def test_a_new_key_has_256_bits_that_nobody_sees_by_accident() -> None:
    made = {new_key()[1].reveal() for _ in range(100)}
    assert len(made) == 100
    for text in made:
        assert key_id_of(text) is not None
        assert len(text.split("_", 2)[2]) == 43
    secret = new_key()[1]
    assert secret.reveal() not in f"{secret} {secret!r}"
