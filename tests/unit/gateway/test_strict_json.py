"""Bodies: what lenient parsers let pass is refused with what and where."""

from __future__ import annotations

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.gateway.strict_json import DEPTH_MAX, parse


@pytest.mark.req("GATE-04.2")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"{", "is not JSON"),
        (b'{"a": 1,}', "is not JSON"),
        (b"{'a': 1}", "is not JSON"),
        (b'{"a": 1} x', "is not JSON: Extra data at line 1 column 10"),
        (b'{"a": 1, "a": 2}', "has the key 'a' twice"),
        (b'{"b": {"a": 1, "a": 1}}', "has the key 'a' twice"),
        (b'{"a": NaN}', "has NaN"),
        (b'{"a": -Infinity}', "has -Infinity"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b'{"a": ["\\ud800"]}', "has half of a surrogate pair"),
        (b'{"\\uDFFFx": 1}', "has half of a surrogate pair"),
        (b"[" * 100_000, "is nested deeper"),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), "is nested deeper"),
        (b"9" * 5000, "is not JSON"),
    ],
)
def test_what_is_no_strict_json_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(data)
    assert caught.value.reason == "msg_parsing_error"
    assert message in caught.value.message


def test_json_is_read_unchanged() -> None:
    assert parse(b'["\\ud83d\\ude00", "\\\\ud800"]') == ["\U0001f600", "\\ud800"]
    text = '{"a": [1, 2.5, null, true, "\u6f22\u5b57 \U0001f600"], "b": {"c": {}}}'
    assert parse(text.encode()) == {"a": [1, 2.5, None, True, "\u6f22\u5b57 \U0001f600"], "b": {"c": {}}}
