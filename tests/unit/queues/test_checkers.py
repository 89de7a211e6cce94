"""The checkers must find what they are for."""

from __future__ import annotations

import pytest

from groundplane.testing.checkers import BrokenPromise, History


def _history(sent: str, done: str) -> History:
    history = History()
    history.sent(*sent)
    history.done(*done)
    return history


def test_a_clean_history_passes_every_check() -> None:
    history = _history("abc", "abc")
    history.check_nothing_lost()
    history.check_nothing_invented()
    history.check_no_effect_twice()
    history.check_order()
    history.check_attempts_grow()


def test_a_lost_message_is_named_and_a_dead_letter_is_not_lost() -> None:
    history = _history("abc", "a")
    history.ended("b")
    with pytest.raises(BrokenPromise, match=r"lost: c$") as caught:
        history.check_nothing_lost()
    assert caught.value.ids == ["c"]


def test_a_doubled_effect_is_named() -> None:
    with pytest.raises(BrokenPromise, match=r"more than once: b$"):
        _history("ab", "abb").check_no_effect_twice()


def test_an_effect_that_nobody_sent_is_named_unless_it_may_have_been() -> None:
    history = _history("a", "ab")
    with pytest.raises(BrokenPromise, match=r"never sent: b$"):
        history.check_nothing_invented()
    history.maybe_sent("b")
    history.check_nothing_invented()


def test_an_overtaken_message_is_named() -> None:
    with pytest.raises(BrokenPromise, match=r"out of order: b$"):
        _history("abcd", "acbd").check_order()


@pytest.mark.parametrize(("seen", "good"), [([1, 1, 2, 3], True), ([2, 3], True), ([1, 3], False), ([2, 1], False)])
def test_attempts_grow_one_by_one(seen: list[int], good: bool) -> None:
    history = History()
    for attempt in seen:
        history.attempt("m", attempt)
    if good:
        history.check_attempts_grow()
    else:
        with pytest.raises(BrokenPromise, match=r"attempts jumped: m$"):
            history.check_attempts_grow()


def test_many_witnesses_are_cut_in_the_message_and_kept_in_the_error() -> None:
    with pytest.raises(BrokenPromise, match="and 15 more") as caught:
        _history("abcdefghijklmnopqrstuvwxy", "").check_nothing_lost()
    assert len(caught.value.ids) == 25
