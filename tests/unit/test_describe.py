"""Filters against a naive model."""

from __future__ import annotations

import fnmatch
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haneul.errors import CloudError
from haneul.services.describe import matching, texts

ITEMS: list[dict[str, Any]] = [
    {
        "Id": "a",
        "Size": 8,
        "Ok": True,
        "Nested": [{"Name": "x"}, {"Name": "y"}],
        "Tags": [{"Key": "Name", "Value": "web-1"}],
    },
    {"Id": "b", "Size": 80, "Ok": False, "Nested": [], "Tags": []},
    {"Id": "a*b", "Size": 8, "Nested": [{"Name": "z"}], "Tags": [{"Key": "name", "Value": ""}]},
]
KNOWN = {"id": "Id", "size": "Size", "ok": "Ok", "nested": "Nested.Name"}


CTX: Any = SimpleNamespace(operation="DescribeInstances")


def find(*filters: tuple[str, list[str]]) -> list[str]:
    given = [{"Name": name, "Values": values} for name, values in filters]
    return [item["Id"] for item in matching(CTX, {"Filters": given}, ITEMS, KNOWN)]


def test_paths_walk_through_lists() -> None:
    assert list(texts(ITEMS[0], "Nested.Name")) == ["x", "y"]
    assert list(texts(ITEMS[0], "Ok")) == ["true"]


def test_several_filters_and_several_values() -> None:
    assert find(("size", ["8"])) == ["a", "a*b"]
    assert find(("size", ["8"]), ("nested", ["z", "q"])) == ["a*b"]
    assert find(("ok", ["false"])) == ["b"]
    assert find(("tag:Name", ["web-?"])) == ["a"]
    assert find(("tag-key", ["Name", "name"])) == ["a", "a*b"]
    assert find(("id", [r"a\*b"])) == ["a*b"]


@given(st.text(alphabet="ab*?-", max_size=6), st.text(alphabet="ab-*?", max_size=6))
def test_wildcards_are_as_the_shell_has_them(pattern: str, text: str) -> None:
    item = {"Id": text}
    found = bool(matching(CTX, {"Filters": [{"Name": "id", "Values": [pattern]}]}, [item], KNOWN))
    assert found == (text != "" and fnmatch.fnmatchcase(text, pattern)), "an empty member is one that is not there"


def test_a_documented_filter_on_what_nobody_has_matches_nothing() -> None:
    assert find(("tpm-support", ["v2.0"])) == []


def test_many_stars_cost_nothing() -> None:
    began = time.process_time()
    pattern = "*a" * 100 + "b"
    assert not matching(CTX, {"Filters": [{"Name": "id", "Values": [pattern]}]}, [{"Id": "a" * 255}] * 100, KNOWN)
    assert time.process_time() - began < 20, "the naive way takes longer than the age of the universe"


@pytest.mark.parametrize("wrong", [("nope", ["x"]), ("id", [])])
def test_unknown_filters_are_errors(wrong: tuple[str, list[str]]) -> None:
    with pytest.raises(CloudError):
        find(wrong)
