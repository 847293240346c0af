"""Slots of haneuls on one server are allocated: two data directories never have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from haneul import identity
from haneul.errors import SettingsError


@pytest.fixture(autouse=True)
def _registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "SLOTS", tmp_path / "slots")
    monkeypatch.setattr(identity, "_routed", lambda: "")


def test_two_whose_paths_hash_alike_have_two_slots(tmp_path: Path) -> None:
    """Both started before either has a network."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = identity.free_slot(7, tmp_path / "a")
    assert (first, identity.free_slot(7, tmp_path / "b"), identity.free_slot(7, tmp_path / "a")) == (7, 8, 7)


def test_whose_slot_another_has_is_refused(tmp_path: Path) -> None:
    mine = identity.ensure(tmp_path / "mine", real=True)
    other = tmp_path / "other"
    identity.ensure(other)
    (other / "identity" / "slot").write_text(str(mine.slot))
    with pytest.raises(SettingsError, match="has the same slot"):
        identity.ensure(other, real=True)
    identity.release_slot(tmp_path / "mine", mine.slot)
    identity.ensure(other, real=True)


def test_a_slot_of_nobody_is_free_and_there_is_an_end(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    assert identity.free_slot(3, gone) == 3
    gone.rmdir()
    places = [tmp_path / f"data-{number}" for number in range(257)]
    for place in places:
        place.mkdir()
    assert {identity.free_slot(3, place) for place in places[:256]} == set(range(256))
    with pytest.raises(SettingsError, match="all 256 slots"):
        identity.free_slot(3, places[256])


def test_one_data_directory_by_two_paths_has_one_slot(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert identity.free_slot(7, tmp_path / "data") == identity.free_slot(7, tmp_path / "link") == 7
