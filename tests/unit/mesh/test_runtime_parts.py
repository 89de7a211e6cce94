"""The pure parts of the runtime: framing, binding, the kernel's counters, errors as values."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.mesh import runtime as module
from groundplane.mesh.runtime import Fault, FrameReader, JsonCodec, MsgpackCodec, Parameters, describe, frame, oom_kills


def everything(reader: FrameReader) -> list[bytes]:
    found = []
    while (body := reader.next()) is not None:
        found.append(body)
    return found


def reason_of_refusal(function: Callable[..., Any], *args: Any) -> str | None:
    """The reason of the fault that a call ends with; None when it succeeds."""
    try:
        function(*args)
    except Fault as fault:
        return fault.reason
    return None


class TestFrames:
    @pytest.mark.req("MESH-04.1")
    @settings(max_examples=200, deadline=None)
    @given(
        bodies=st.lists(st.binary(max_size=300), max_size=8),
        frame_max=st.integers(1, 100),
        cuts=st.lists(st.integers(1, 50), min_size=1),
    )
    def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(
        self, bodies: list[bytes], frame_max: int, cuts: list[int]
    ) -> None:
        stream = b"".join(frame(body, frame_max) for body in bodies)
        reader = FrameReader(frame_max, 1000)
        found = []
        at = 0
        for index in range(len(stream) + 1):
            size = cuts[index % len(cuts)]
            reader.feed(stream[at : at + size])
            found += everything(reader)
            at += size
        assert found == bodies

    @pytest.mark.req("MESH-04.2")
    @settings(max_examples=300, deadline=None)
    @given(data=st.binary(max_size=400))
    def test_garbage_is_cut_or_refused_and_never_grows_beyond_the_limits(self, data: bytes) -> None:
        reader = FrameReader(64, 128)
        reader.feed(data)
        with contextlib.suppress(Fault):
            assert all(len(body) <= 128 for body in everything(reader))

    @pytest.mark.req("MESH-04.2")
    def test_a_continued_frame_is_refused_where_it_was_not_agreed(self) -> None:
        reader = FrameReader(64, 64)
        reader.feed((10 | 0x80000000).to_bytes(4, "big") + bytes(10))
        with pytest.raises(Fault, match="over the limit of 64"):
            reader.next()


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


class TestCodecs:
    @pytest.mark.req("MESH-04.2")
    @settings(max_examples=200, deadline=None)
    @given(value=JSON)
    def test_what_can_be_carried_comes_back_equal_in_both(self, value: Any) -> None:
        with contextlib.suppress(Fault):
            assert JsonCodec().decode(JsonCodec().encode(value)) == value
        with contextlib.suppress(Fault):
            assert MsgpackCodec().decode(MsgpackCodec().encode(value)) == value

    @settings(max_examples=300, deadline=None)
    @given(data=st.binary(max_size=100))
    def test_garbage_is_a_fault_and_nothing_else(self, data: bytes) -> None:
        for codec in (JsonCodec(), MsgpackCodec()):
            assert reason_of_refusal(codec.decode, data) in (None, "msg_parsing_error")

    @pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [{"a": 10**30}], float("nan"), float("inf"), {1: {2**70}}])
    def test_json_refuses_numbers_that_others_would_change(self, value: Any) -> None:
        with pytest.raises(Fault):
            JsonCodec().encode(value)

    def test_long_digits_in_text_are_no_numbers(self) -> None:
        assert JsonCodec().decode(JsonCodec().encode(["9" * 40, 2**64 - 1])) == ["9" * 40, 2**64 - 1]


class TestBinding:
    @pytest.mark.req("MESH-03.1")
    @settings(max_examples=200, deadline=None)
    @given(payload=JSON)
    def test_any_payload_is_bound_or_refused_as_unfit(self, payload: Any) -> None:
        def one(value): ...  # type: ignore[no-untyped-def]
        def typed(value: int, other: str = ""): ...  # type: ignore[no-untyped-def]
        def loose(value=1, *, other=2, **rest): ...  # type: ignore[no-untyped-def]
        def starred(*args): ...  # type: ignore[no-untyped-def]

        for function in (one, typed, loose, starred):

            def call(function: Any = function) -> None:
                args, kwargs = Parameters(function).arguments(payload, None, {})  # type: ignore[arg-type]
                function(*args, **kwargs)

            allowed = (None,) if function is starred else (None, "msg_parsing_error")
            assert reason_of_refusal(call) in allowed

    @pytest.mark.req("MESH-03.1")
    def test_a_payload_cannot_take_the_place_of_the_context(self) -> None:
        def handler(ctx, **rest): ...  # type: ignore[no-untyped-def]

        with pytest.raises(Fault, match="'ctx' is unknown"):
            Parameters(handler).arguments({"ctx": "mine", "a": 1}, None, {})  # type: ignore[arg-type]

    @pytest.mark.req("MESH-03.1")
    def test_signatures_read_from_code_are_those_of_inspect(self) -> None:
        def plain(a, /, b: int, c="x", *args, d, e: float = 1.0, **rest): ...  # type: ignore[no-untyped-def]

        class Holder:
            def method(self, a, b=1): ...  # type: ignore[no-untyped-def]

        for function in (plain, Holder().method, lambda: None, lambda **k: None):
            ours = [(n, k, r) for n, k, r, _ in module.signature(function) if k not in (2, 4)]
            theirs = [(n, k, r) for n, k, r, _ in module._inspected(function) if k not in (2, 4)]
            assert ours == theirs
        assert module.signature(functools.partial(plain, 1)) == module._inspected(functools.partial(plain, 1))


class TestOomCounter:
    @pytest.mark.req("MESH-08.1")
    def test_it_is_read_from_the_cgroup_of_this_process(self, tmp_path: Path) -> None:
        def counted(membership: str, file: str, text: str) -> int:
            (tmp_path / "membership").write_text(membership)
            where = tmp_path / "root" / file
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_text(text)
            found = oom_kills(str(tmp_path / "membership"), str(tmp_path / "root"), str(tmp_path / "vmstat"))
            where.unlink()
            return found

        events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
        assert counted("0::/pod/app\n", "pod/app/memory.events", events) == 2
        assert counted("0::/\n", "memory.events", events) == 2
        assert counted("0::/hidden/by/namespace\n", "memory.events", events) == 2
        control = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"
        assert counted("4:cpu:/x\n3:memory:/x\n0::/\n", "memory/x/memory.oom_control", control) == 7
        assert counted("3:cpu,memory:/x\n", "memory/memory.oom_control", control) == 7
        assert counted("garbage\n", "unused", "") == 0
        (tmp_path / "vmstat").write_text("nr_free 1\noom_kill 5\n")
        assert counted("garbage\n", "unused", "") == 5

    def test_it_can_be_read_here(self) -> None:
        assert oom_kills() >= 0
        assert isinstance(oom_kills(), int)


class TestErrorsAsValues:
    @pytest.mark.req("MESH-06.1")
    def test_foreign_errors_with_a_code_or_a_reason_are_not_taken_for_ours(self) -> None:
        class Http(Exception):
            code = 404
            reason = "Not Found"
            retryable = True

        class Listed(Exception):
            code = (404,)
            reason = ""
            retryable = 1

        for error in (Http("x"), Listed("x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")):
            info = describe(error)
            assert info["reason"] == "processing_error"
            assert "code" not in info

    @pytest.mark.req("MESH-06.1")
    def test_ours_keep_code_reason_and_whether_to_retry(self) -> None:
        from groundplane.core.errors import ResourceExhausted

        info = describe(ResourceExhausted("disk: full", reason="disk_full", details={"free": 0}))
        assert (info["code"], info["reason"], info["retryable"]) == ("resource_exhausted", "disk_full", True)
        assert info["details"] == {"free": 0}

    def test_a_chain_without_end_is_described(self) -> None:
        error: BaseException = ValueError("first")
        for n in range(5000):
            following = ValueError(n)
            following.__cause__ = error
            error = following
        info = describe(error)
        assert info["message"] == "4999"
        assert len(info["traceback"]) <= 64 * 1024 + 100

    def test_retry_takes_a_duration(self) -> None:
        for delay in (-1, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="delay_s"):
                module.Retry(delay)
