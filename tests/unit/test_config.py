"""Settings: the file, the variables, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from haneul.config import load, sources
from haneul.errors import SettingsError


def test_a_variable_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "haneul.toml"
    file.write_text('port = 5000\nregion = "eu-west-1"\n')
    environment = {"HANEUL_CONFIG": str(file), "HANEUL_PORT": "6000"}
    settings = load(environment)
    assert (settings.port, settings.region, settings.auth) == (6000, "eu-west-1", "signed")
    origins = {one.name: one.origin for one in sources(environment)}
    assert (origins["port"], origins["region"], origins["auth"]) == ("HANEUL_PORT", str(file), "default")


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("prot = 1", {}, "no setting 'prot'"),
        ("port = ", {}, "haneul.toml"),
        ("", {"HANEUL_AUTH": "none"}, "HANEUL_AUTH"),
        ("", {"HANEUL_PORT": "many"}, "not a whole number"),
        ("", {"HANEUL_ACCOUNT": "12"}, "twelve digits"),
        ("tcg_buffer_mib = 8", {}, "tcg_buffer_mib = 8 is too small: at least 16"),
        ("tcg_buffer_mib = 512", {}, "more than memory_overhead_mib = 160"),
        ('auth = "open"\nhost = "0.0.0.0"', {}, "loopback"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, environment: dict[str, str], said: str) -> None:
    file = tmp_path / "haneul.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load({"HANEUL_CONFIG": str(file)} | environment)
