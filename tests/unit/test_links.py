"""Addresses of links are allocated, not hashed: no two VPCs share one."""

from __future__ import annotations

from pathlib import Path

import pytest

from haneul.drivers.interface import DriverError
from haneul.drivers.networks.linux import links
from haneul.drivers.networks.linux.links import Links


def test_a_thousand_vpcs_have_a_thousand_addresses(tmp_path: Path) -> None:
    """Hashed, 200 of them collided in two clouds of three (vpc-09be3cecb8c497c68 and vpc-0c725bd979e289761 for one)."""
    made = Links(tmp_path / "links.json")
    names = [f"vpc-{number:017x}" for number in range(1000)] + ["vpc-09be3cecb8c497c68", "vpc-0c725bd979e289761"]
    first = {name: made.allocate(name) for name in names}
    assert len(set(first.values())) == len(names)
    again = Links(tmp_path / "links.json")
    assert {name: again.allocate(name) for name in names} == first, "kept"
    again.free(names[3])
    assert again.allocate("vpc-new") == first[names[3]]


def test_one_that_is_there_is_kept(tmp_path: Path) -> None:
    """A VPC that an older haneul made has an address already."""
    made = Links(tmp_path / "links.json")
    assert made.allocate("vpc-old", "169.254.110.220") == "169.254.110.220"
    assert made.allocate("vpc-other", "169.254.110.220") != "169.254.110.220"


def test_the_last_address_and_no_more() -> None:
    every = {str(number): links.address(number) for number in range(links.MOST)}
    assert len(set(every.values())) == links.MOST and all(links.is_link(one) for one in every.values())
    assert not links.is_link("169.254.169.254") and not links.is_link("169.254.255.1")
    with pytest.raises(DriverError):
        links.choose(every)


def test_what_could_not_be_written_is_not_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Links(tmp_path / "links.json")
    first = made.allocate("vpc-1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(links.files, "replace", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                made.allocate("vpc-2")
        with pytest.raises(OSError, match="No space"):
            made.free("vpc-1")
    assert made.of("vpc-2") is None and made.of("vpc-1") == first
    assert made.allocate("vpc-2") == Links(tmp_path / "links.json").of("vpc-2") != first


def test_a_file_that_says_nothing_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "links.json").write_text("garbage")
    assert Links(tmp_path / "links.json").allocate("vpc-1", links.address(7)) == links.address(7)
