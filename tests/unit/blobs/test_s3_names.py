"""Names of objects in a bucket: reversible, in the order of keys, each beginning as its prefix does; and labels."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.blobs.drivers.s3_names import NAME_BYTES_MAX, Names, info_of, labels
from groundplane.blobs.keys import check_key
from groundplane.blobs.port import PutOptions
from groundplane.core.errors import Internal, InvalidArgument

NAMES = Names("some/prefix")


def is_key(text: str) -> bool:
    try:
        check_key(text)
    except InvalidArgument:
        return False
    return True


odd = st.text(st.sampled_from(" !/.0123+-aAzé~😀"), min_size=1, max_size=255)
any_text = st.text(min_size=1, max_size=60).filter(str.isprintable)
long = st.builds(lambda a, n, b: (a * n + b)[:255], st.sampled_from("x !ö"), st.integers(190, 255), odd)
keys = st.one_of(odd, any_text, long).filter(is_key)


@given(keys)
def test_a_name_is_one_that_every_store_takes_and_leads_back_to_its_key(key: str) -> None:
    name = NAMES.name(key)
    assert len(name.encode()) <= NAME_BYTES_MAX
    assert all(0 < len(part.encode()) <= 255 for part in name.split("/"))
    found = NAMES.key(name)
    assert found == key or (found == "" and len(key.encode()) > 900)


@given(keys, keys)
def test_names_are_in_the_order_of_their_keys(one: str, other: str) -> None:
    assert (one.encode() < other.encode()) == (NAMES.name(one).encode() < NAMES.name(other).encode()) or (
        len(one.encode()) > 900 and len(other.encode()) > 900
    )


@given(keys, st.integers(0, 255))
def test_a_name_begins_as_the_prefixes_of_its_key_do(key: str, length: int) -> None:
    start = NAMES.start(key[:length])
    assert NAMES.name(key).startswith(start)
    before = NAMES.before(start)
    assert before is None or before.encode() < NAMES.name(key).encode()


@given(keys, keys)
def test_no_object_has_the_name_of_a_folder_of_another(one: str, other: str) -> None:
    assert not NAMES.name(other).startswith(NAMES.name(one) + "/")


def test_names_are_readable() -> None:
    assert NAMES.name("reports/2026.json") == "some/prefix/reports/2026.json!"
    assert NAMES.name("a b!") == "some/prefix/a!0b!1!"
    assert Names("").name("k") == "k!"
    assert Names("p", plain=True).name("reports/2026.json") == "p/reports/2026.json"


@pytest.mark.parametrize(
    "name", ["some/prefix/of-others.csv", "some/prefix/a b!", "some/prefix/a!7!", "some/prefix/!!"]
)
def test_objects_of_others_are_not_taken_for_ours(name: str) -> None:
    assert NAMES.key(name) is None


def test_a_plain_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^key: "):
        Names("p" * 100, plain=True).name("😀" * 255)


@given(st.sampled_from(["a", "a/", "a/b", "ö", "\ue000"]), st.sampled_from(["a", "a/b", "a0", "ö", "öx", "\ue000"]))
def test_a_plain_listing_begins_before_the_prefix_itself(prefix: str, key: str) -> None:
    names = Names("p", plain=True)
    before = names.before(names.start(prefix))
    assert before is not None
    if key.startswith(prefix):
        assert before.encode() < names.name(key).encode()


values = st.dictionaries(st.text(min_size=1, max_size=20).filter(str.isprintable), st.text(max_size=40), max_size=6)


@given(values)
def test_labels_of_any_kind_come_back_and_headers_carry_ascii_alone(metadata: dict[str, str]) -> None:
    options = PutOptions(metadata=metadata)
    headers = labels("k", "k", "ab" * 32, 5, options)
    assert all(name.isascii() and value.isascii() and value.isprintable() for name, value in headers.items())
    info = info_of("k", 1, "e", 9, {"Content-Type": "text/x", **headers})
    assert (info.metadata, info.checksum, info.modified_at, info.content_type) == (metadata, "ab" * 32, 5, "text/x")


def test_plain_labels_are_headers_of_their_own_and_ours_cannot_be_forged() -> None:
    headers = labels("k", "k", "cafe", 5, PutOptions(metadata={"who": "me too", "groundplane-sha256": "forged"}))
    assert (headers["who"], headers["groundplane-sha256"]) == ("me too", "cafe")
    assert info_of("k", 1, "e", 9, headers).metadata == {"who": "me too", "groundplane-sha256": "forged"}


def test_what_does_not_fit_into_headers_is_refused_and_damaged_ones_are_told() -> None:
    with pytest.raises(InvalidArgument, match=r"^metadata: "):
        labels("k", "k", "", 5, PutOptions(metadata={"ä": "ö" * 900}))
    headers = labels("k", "k", "", 5, PutOptions(metadata={"ä": "ö"}))
    with pytest.raises(Internal, match="damaged"):
        info_of("k", 1, "e", 9, {**headers, "groundplane-more": "!!"})


def test_an_object_of_another_program_is_read_with_what_it_has() -> None:
    info = info_of("k", 3, "e", 9, {"Content-Type": "text/csv", "Cache-Control": "no-cache", "who": "aws"})
    assert msgspec.to_builtins(info) == {
        "key": "k",
        "size": 3,
        "etag": "e",
        "checksum": "",
        "modified_at": 9,
        "content_type": "text/csv",
        "metadata": {"who": "aws"},
    }
