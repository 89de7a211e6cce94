"""The parser of NATS, its headers, its error table and its keys: pure, byte by byte."""

from __future__ import annotations

import base64
import contextlib
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from groundplane.backends.nats import ConsumerConfig, Message, StreamConfig, decode_headers, encode_headers, place_of
from groundplane.backends.nats.config import differs, document
from groundplane.backends.nats.credentials import login_with_creds, login_with_nkey
from groundplane.backends.nats.errors import _REFUSALS, MEANINGS, from_api, from_refusal, from_status
from groundplane.backends.nats.jetstream import nanoseconds, read_ack
from groundplane.backends.nats.parser import Parser, ProtocolError
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument
from groundplane.core.reasons import REASONS


class _Heard:
    def __init__(self) -> None:
        self.all: list[object] = []

    def on_info(self, document: bytes) -> None:
        self.all.append(("INFO", document))

    def on_ping(self) -> None:
        self.all.append("PING")

    def on_pong(self) -> None:
        self.all.append("PONG")

    def on_refusal(self, words: str) -> None:
        self.all.append(("-ERR", words))

    def deliver(self, sid: int, message: Message) -> None:
        self.all.append((sid, message.subject, message.reply, message.payload, message.headers, message.status))


def _heard(pieces: list[bytes]) -> list[object]:
    heard = _Heard()
    parser = Parser(heard, heard.deliver)
    for piece in pieces:
        parser.feed(piece)
    return heard.all


CONVERSATION = (
    b'INFO {"a":1}\r\n+OK\r\nPING\r\npong\r\n'
    b"MSG a.b 7 5\r\nhe\r\no\r\n"
    b"MSG a 8 _INBOX.1 0\r\n\r\n"
    b"HMSG a 9 22 25\r\nNATS/1.0\r\nA: b\r\nC:d\r\n\r\nxyz\r\n".replace(b"22 25", b"23 26")
    + b"HMSG _INBOX.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    + b"-ERR 'Authorization Violation'\r\n"
)
MEANT = [
    ("INFO", b'{"a":1}'),
    "PING",
    "PONG",
    (7, "a.b", "", b"he\r\no", {}, 0),
    (8, "a", "_INBOX.1", b"", {}, 0),
    (9, "a", "", b"xyz", {"A": "b", "C": "d"}, 0),
    (1, "_INBOX.1", "", b"", {}, 503),
    ("-ERR", "Authorization Violation"),
]


def test_a_conversation_is_understood_however_it_is_cut() -> None:
    assert _heard([CONVERSATION]) == MEANT
    assert _heard([CONVERSATION[n : n + 1] for n in range(len(CONVERSATION))]) == MEANT


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=8))
def test_any_cut_gives_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CONVERSATION)]
    assert _heard([CONVERSATION[a:b] for a, b in pairwise(edges) if a < b]) == MEANT


@given(st.binary(max_size=200))
def test_bytes_of_anybody_are_understood_or_refused_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert all(_heard([data, b"\r\n"]))


@pytest.mark.parametrize(
    "line",
    [b"MSG a 1\r\n", b"MSG a x 1\r\n", b"MSG a 1 -1\r\n", b"MSG a 1 99999999999\r\n", b"HMSG a 1 9 3\r\n",
     b"MSG a 1 2\r\nabcd\r\n", b"MUSIC a 1 0\r\n\r\n", b"GET / HTTP/1.1\r\n", b"MSG \xff 1 0\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_protocol_ends_it(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        _heard([line])


_NAMES = st.from_regex(r"[A-Za-z0-9-]{1,12}", fullmatch=True)
_TEXTS = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))


@given(st.dictionaries(_NAMES, _TEXTS.map(lambda text: text.strip(" \t"))))
def test_headers_come_back_as_they_went(headers: dict[str, str]) -> None:
    assert decode_headers(encode_headers(headers)) == headers


def test_the_place_of_a_delivery_is_read_in_both_forms() -> None:
    short = "$JS.ACK.S.C.2.10.3.1700000000000000000.4"
    long = "$JS.ACK.hub.ACCHASH.S.C.2.10.3.1700000000000000000.4.rAnDoM"
    assert place_of(short) == place_of(long) == ("S", "C", 2, 10, 3, 1_700_000_000_000_000_000, 4)
    with pytest.raises(ValueError, match="no acknowledgement"):
        place_of("_INBOX.1")


def test_times_of_the_server_keep_their_nanoseconds() -> None:
    assert nanoseconds("1970-01-01T00:00:01.000000009Z") == 1_000_000_009
    assert nanoseconds("2026-11-22T15:29:40Z") == 1_795_361_380_000_000_000
    with pytest.raises(ValueError, match="no time"):
        nanoseconds("now")


def test_durations_are_sent_in_nanoseconds_and_defaults_are_not_sent() -> None:
    assert document(StreamConfig(name="S", max_age_s=1.5)) == {"name": "S", "max_age": 1_500_000_000}
    consumer = document(ConsumerConfig(durable_name="d", backoff_s=(1.0, 2.0)))
    assert consumer == {"durable_name": "d", "ack_policy": "explicit", "backoff": [1_000_000_000, 2_000_000_000]}


def test_a_stream_differs_only_in_what_is_asked_for() -> None:
    actual = {"name": "S", "subjects": ["b", "a"], "max_msgs": 5, "metadata": {"_nats.ver": "1", "mine": "1"}}
    assert differs(StreamConfig(name="S", subjects=("a", "b"), metadata={"mine": "1"}), actual) == []
    assert differs(StreamConfig(name="S", max_msgs=6, allow_direct=True), actual) == ["max_msgs", "allow_direct"]


def test_every_reason_that_nats_may_have_is_in_the_table_with_its_code() -> None:
    for meaning in (*MEANINGS.values(), *_REFUSALS.values()):
        row = REASONS[meaning.reason]
        assert row.code == meaning.error.code, meaning


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        ({"code": 404, "err_code": 10059}, "not_found", "stream_not_found"),
        ({"code": 503, "err_code": 10077}, "resource_exhausted", "stream_full"),
        ({"code": 500, "err_code": 99999}, "unavailable", "jetstream_error"),
        ({"code": 400, "err_code": 99998}, "invalid_argument", "jetstream_config"),
        ({"code": 503}, "unavailable", "jetstream_unavailable"),
        ({}, "unavailable", "jetstream_error"),
    ],
)
def test_codes_of_jetstream_become_errors(answer: dict[str, int], code: str, reason: str) -> None:
    error = from_api("stream: 'S'", {**answer, "description": "words"})
    assert (error.code, error.reason, error.details["description"]) == (code, reason, "words")
    assert error.message.startswith("stream: 'S': ")


def test_words_of_the_protocol_become_errors() -> None:
    assert from_refusal("Authorization Violation").reason == "login_refused"
    assert from_refusal("Something new").reason == "connection_lost"
    refused = from_refusal('Permissions Violation for Publish to "a.b"')
    assert (refused.code, refused.details) == ("permission_denied", {"subject": "a.b", "publish": True})
    assert not from_refusal('Permissions Violation for Subscription to "a"').details["publish"]
    assert from_status("stream: 'S'", 404, "").code == "not_found"


def test_an_answer_that_is_no_acknowledgement_is_an_error() -> None:
    with pytest.raises(GroundplaneError) as caught:
        read_ack("a", Message("_INBOX.1", "", b"hello"))
    assert caught.value.reason == "malformed_frame"


SEED = "SUAEL6GG2L2HIF7DUGZJGMRUFKXELGGYFMHF76UO2AYBG3K4YLWR3FKC2Q"
PUBLIC = "UD6OU4D3CIOGIDZVL4ANXU3NWXOW5DCDE2YPZDBHPBXCVKHSODUA4FKI"
"""A pair of keys; a real server takes them in `tests/integration/test_nats_client.py`."""


def test_a_seed_signs_and_names_its_public_key(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "user.nk"
    path.write_text(SEED + "\n")
    login = login_with_nkey(str(path), "nonce")
    assert login["nkey"] == PUBLIC
    raw = base64.b32decode(PUBLIC)[1:33]
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.urlsafe_b64decode(login["sig"] + "=="), b"nonce")


def test_a_creds_file_gives_its_jwt_and_a_signature(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "user.creds"
    path.write_text(
        "-----BEGIN NATS USER JWT-----\neyJ0.e30.sig_-x\n------END NATS USER JWT------\n\nKEEP IT\n"
        f"-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"
    )
    login = login_with_creds(str(path), "nonce")
    assert login["jwt"] == "eyJ0.e30.sig_-x"
    assert login["sig"]


@pytest.mark.parametrize("text", ["", "SUAEL6", SEED[:-1] + "A", SEED.replace("SU", "SA", 1)])
def test_a_file_without_a_users_seed_is_refused_and_not_shown(tmp_path, text: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "user.nk"
    path.write_text(text)
    with pytest.raises(FailedPrecondition, match=r"user\.nk") as caught:
        login_with_nkey(str(path), "nonce")
    assert SEED[8:20] not in str(caught.value)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        login_with_creds(str(tmp_path / "none"), "nonce")


@pytest.mark.parametrize("headers", [{"a:b": "1"}, {"a": "x\ny"}, {"a": " x"}, {"ä": "1"}])
def test_headers_that_cannot_be_written_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="headers"):
        encode_headers(headers)
