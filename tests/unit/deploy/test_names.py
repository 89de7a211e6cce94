"""Names that Kubernetes takes, made of names that it may not take."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core.errors import InvalidArgument
from groundplane.deploy.names import OBJECT_MAX, check_image, check_namespace, object_name

_NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?", fullmatch=True)


@pytest.mark.parametrize("name", ["double", "a", "add-five", "a1"])
def test_a_name_that_is_one_stays_as_it_is(name: str) -> None:
    assert object_name("acme", "actor", name) == f"acme-actor-{name}"


@pytest.mark.parametrize("name", ["lookUp", "sum.all", "snake_case", "x" * 60, "ends_"[:-1] + ".A"])
def test_any_other_is_mapped_and_ends_in_a_digest(name: str) -> None:
    assert re.fullmatch(r"acme-actor-[a-z0-9-]+-[0-9a-f]{8}", object_name("acme", "actor", name))


@given(_NAMES, _NAMES)
def test_every_name_is_accepted_and_two_never_become_one(one: str, other: str) -> None:
    found = object_name(one, "actor", other)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", found)
    assert len(found) <= OBJECT_MAX
    if one != other:
        assert object_name("acme", "actor", one) != object_name("acme", "actor", other)


def test_names_that_differ_in_case_alone_stay_apart() -> None:
    assert len({object_name("acme", "actor", name) for name in ("a.b", "a_b", "A.b", "a-b", "A-B")}) == 5


@pytest.mark.parametrize("wrong", ["", "Acme", "a_b", "-a", "a-", "x" * 64, "a.b"])
def test_a_namespace_that_kubernetes_refuses_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(f"namespace: {wrong!r} is no namespace of Kubernetes")):
        check_namespace(wrong)


@pytest.mark.parametrize("image", ["acme", "acme:1.0", "localhost:5000/acme/plane:V1", f"acme@sha256:{'0' * 64}"])
def test_an_image_is_taken_as_it_is(image: str) -> None:
    assert check_image("image", image) == image


@pytest.mark.parametrize("wrong", ["", "Acme", "acme plane", "acme:", "acme\n", "$IMAGE", "acme@sha256:1"])
def test_what_is_no_image_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^image: {re.escape(repr(wrong))}"):
        check_image("image", wrong)
