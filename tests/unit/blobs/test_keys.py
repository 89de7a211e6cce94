"""Keys of objects and their form on a file system."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.blobs.keys import OBJECT, check_key, decoded, path_of
from groundplane.core.errors import InvalidArgument

_characters = st.characters(exclude_categories=["C", "Z"], include_characters=" ")
_keys = st.text(_characters, min_size=1, max_size=255).filter(
    lambda key: all(segment not in ("", ".", "..") for segment in key.split("/"))
)


def _key_of(path: list[str]) -> str:
    key = b""
    for name in path:
        one = decoded(name)
        assert one is not None
        data, ending = one
        key += data if ending else data + b"/"
    return key.decode()


@pytest.mark.req("BLOB-04.1")
@given(_keys)
def test_a_path_names_its_key_alone_and_stays_below_its_folder(key: str) -> None:
    path = path_of(check_key(key))
    assert _key_of(path) == key
    assert path[-1].endswith(OBJECT)
    for name in path:
        assert name not in (".", "..")
        assert "/" not in name
        assert name == name.lower()
        assert name.isascii()
        assert len(name) <= 181


@pytest.mark.req("BLOB-04.1")
@pytest.mark.parametrize("key", ["../x", "a/../../b", "..", "/etc/passwd", "a//b"])
def test_a_key_that_would_leave_the_folder_says_so(key: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_key(key)
    assert caught.value.reason == "path_escape"


@pytest.mark.parametrize("name", ["A@", "%zz@", "%61@", "@", "ä@", "%6@", "% 1@", "%+1@"])
def test_a_file_that_is_not_ours_has_no_key(name: str) -> None:
    assert decoded(name) is None
