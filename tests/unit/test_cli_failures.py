"""A failure that is the world's prints what failed and what to do, exit code 3: every command, with each of them."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from haneul.cli import run as cli
from haneul.errors import CloudError, SettingsError, WorldError

#: Every command -> arguments with which it gets to its work. A new command has to be added here.
COMMANDS: dict[str, list[str]] = {
    "up": ["--detach"], "agent": ["/tmp/socket"], "down": [], "backup": ["FILE"], "restore": ["FILE"], "status": [], "env": [],
    "config": [], "doctor": [], "logs": [], "events": [], "trace": ["i-0"], "ssh": ["web"], "console": ["web"], "compare": [],
    "quickstart": [], "image build": [], "image import": ["FILE", "--name", "web", "--format", "raw"], "image list": [],
    "image rm": ["web"], "image warm": ["tiny"], "image templates": [], "account add": ["x"], "account list": [],
    "account rotate": ["x"], "account rm": ["x"], "unclaimed list": [], "unclaimed rm": ["vol-1"],
}  # fmt: skip
#: These ask nobody: they read files of the data directory, or settings.
_READ_FILES = {"config", "events", "trace"}

FAILURES: dict[str, Any] = {
    "no network": WorldError("mmdebstrap failed: the mirror cannot be reached; is there a network?"),
    "disk full": OSError(errno.ENOSPC, "No space left on device", "/var/lib/haneul/x"),
    "package missing": FileNotFoundError(errno.ENOENT, "No such file or directory", "qemu-img"),
    "no root": PermissionError(errno.EPERM, "Operation not permitted", "/var/lib/haneul"),
    "a program failed": subprocess.CalledProcessError(
        1, ["nft", "-f", "-"], stderr=b"some words\nError: no such table"
    ),
    "a program hangs": subprocess.TimeoutExpired(["qemu-img", "create"], 60),
    "settings": SettingsError("packages are missing: qemu-utils; `make setup` installs them"),
    "the store": CloudError("Unavailable", "The server cannot do this now: its disk is full."),
    "a socket": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
}


class Broken:
    """Whatever a command asks for, the world refuses."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise self._failure

        return fail


def _every_command() -> set[str]:
    group: Any = typer.main.get_command(cli.app)
    found = set()
    for name, command in group.commands.items():
        found |= {f"{name} {inner}" for inner in command.commands} if hasattr(command, "commands") else {name}
    return found


def test_no_command_is_forgotten() -> None:
    assert _every_command() == COMMANDS.keys()


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_of_the_world_is_told(
    command: str, failure: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [*command.split(), *(str(tmp_path / "file") if one == "FILE" else one for one in COMMANDS[command])]
    monkeypatch.setattr("sys.argv", ["haneul", *arguments])
    monkeypatch.setenv("HANEUL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = cli.run(Broken(FAILURES[failure]))  # type: ignore[arg-type]
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    if command in _READ_FILES:
        assert code in (0, 3)
        return
    assert code == 3, said
    (line,) = [one for one in said.splitlines() if one.startswith("haneul: ")]
    assert len(line) > len("haneul: ") + 10


def test_what_is_haneuls_own_fault_is_not_hidden() -> None:
    assert cli.refused_by_the_world(KeyError("x")) == ""
    assert cli.refused_by_the_world(ValueError("x")) == ""
