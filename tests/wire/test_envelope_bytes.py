"""Version 1 of the envelope, pinned by its bytes: what is queued today is read by every later version."""

from __future__ import annotations

import json

import msgspec
import pytest

from groundplane.core.envelope import Branch, Claim, Envelope, Route
from groundplane.core.errors import InvalidArgument

SMALLEST = Envelope(id="e", route=Route(["a"]), created_at=1)
SMALLEST_BYTES = bytes.fromhex(
    "83a26964a165a5726f75746582a66163746f727391a161a763757272656e7400aa637265617465645f617401"
)

FULL = Envelope(
    id="01a1fdfb-662c-76b5-94f4-9288914d79bf",
    route=Route(["double", "add"], 1),
    payload={"value": [1, None, "ä", 2.5, True]},
    headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "n": 1},
    attempt=2,
    created_at=1_767_225_600_000,
    parent_id="p",
    root_id="r",
    job_id="j",
    deadline_at=1_767_225_660_000,
    claim=Claim("claims/2026-01-01/r/x", 7, "ab"),
    branches=[Branch("p", 0, 1, 3)],
    error={"code": "internal", "message": "m"},
    aborted=True,
)
FULL_BYTES = bytes.fromhex(
    "8ea26964d92430316131666466622d363632632d373662352d393466342d393238383931346437396266a5726f75746582a6"
    "6163746f727392a6646f75626c65a3616464a763757272656e7401a77061796c6f616481a576616c75659501c0a2c3a4cb40"
    "04000000000000c3a76865616465727382ab7472616365706172656e74d93730302d30616637363531393136636434336464"
    "383434386562323131633830333139632d623761643662373136393230333333312d3031a16e01a7617474656d707402aa63"
    "7265617465645f6174cf0000019b76daa800a9706172656e745f6964a170a7726f6f745f6964a172a66a6f625f6964a16aab"
    "646561646c696e655f6174cf0000019b76db9260a5636c61696d83a36b6579b5636c61696d732f323032362d30312d30312f"
    "722f78a473697a6507a8636865636b73756da26162a86272616e636865739184a9706172656e745f6964a170a3686f7000a5"
    "696e64657801a5746f74616c03a56572726f7282a4636f6465a8696e7465726e616ca76d657373616765a16da761626f7274"
    "6564c3"
)


@pytest.mark.req("MESH-11")
@pytest.mark.parametrize("envelope, data", [(SMALLEST, SMALLEST_BYTES), (FULL, FULL_BYTES)], ids=["smallest", "full"])
def test_the_bytes_of_version_one_never_change(envelope: Envelope, data: bytes) -> None:
    assert Envelope.from_bytes(data) == envelope
    assert envelope.to_bytes() == data


def test_json_is_read_as_well_and_unknown_fields_are_ignored() -> None:
    text = json.dumps({**msgspec.to_builtins(FULL), "of_a_later_version": {"x": 1}})
    assert Envelope.from_bytes(text.encode()) == FULL


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"version": 2}, "msg_parsing_error"),
        ({"route": {"actors": ["a"], "current": 2}}, "route_error"),
        ({"route": {"actors": ["a"], "current": -1}}, "route_error"),
        ({"id": 7}, "msg_parsing_error"),
        ({"route": None}, "msg_parsing_error"),
    ],
)
def test_what_is_newer_or_no_envelope_is_refused_with_a_reason(change: dict[str, object], reason: str) -> None:
    data = msgspec.msgpack.encode({**msgspec.to_builtins(SMALLEST), **change})
    with pytest.raises(InvalidArgument) as caught:
        Envelope.from_bytes(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("cut", range(1, len(SMALLEST_BYTES)))
def test_no_prefix_of_an_envelope_is_one(cut: int) -> None:
    with pytest.raises(InvalidArgument):
        Envelope.from_bytes(SMALLEST_BYTES[:cut])
