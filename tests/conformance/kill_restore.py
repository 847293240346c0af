"""Restores that are killed: python -m tests.conformance.kill_restore DIRECTORY NEW OLD DATABASE SEED → a tally, as JSON.

Every restore is a fork of this process, which has imported everything and has no threads.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

from haneul.app import backups
from haneul.app.lifecycle import Lifecycle
from haneul.backup import make, swap
from haneul.config import Settings
from haneul.store.ownership import Binding

#: What a restore does to the world, as Python's audit events.
STEPS = {
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
}


class Killer:
    """Ends this process at the nth step that concerns the directory."""

    def __init__(self, directory: str) -> None:
        self.directory, self.left, self.seen = directory, -1, 0
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in STEPS or not any(
            isinstance(one, str | os.PathLike) and self.directory in str(one) for one in arguments
        ):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        self.seen += 1
        if self.seen == self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def state(settings: Settings) -> str:
    rows = io.BytesIO()
    make.dump_store(settings.database_url, rows)
    identity = (settings.data / "identity" / "credentials").read_bytes()
    lines = rows.getvalue().splitlines()
    own = (b'["instances"', b'["revision"', b'["servers"', b'["store_identity"')
    kept = [line for line in lines if not line.startswith(own)]
    # Each restore makes tokens of its own: those of the store and of the data directory have to belong together.
    digest = hashlib.sha256(b"\n".join([*kept, identity, str(belong_together(settings, lines)).encode()]))
    return digest.hexdigest()


def belong_together(settings: Settings, lines: list[bytes]) -> bool:
    parts: dict[str, dict[str, str]] = {}
    for name, row in map(json.loads, lines):
        if name in ("servers", "store_identity"):
            parts[name] = row
    bound = Binding.read((settings.data / "identity" / "server").read_text())
    server = parts.get("servers", {})
    return parts["store_identity"]["token"] == bound.store and server.get("token", bound.token) == bound.token


def restore(settings: Settings, file: Path) -> None:
    Lifecycle().restore(settings, file, True, False, lambda _: None)


def forked(killer: Killer, settings: Settings, step: int, seconds: float, work: object) -> bool:
    """Run `work` in a fork that is killed; whether it was killed before it was done."""
    pid = os.fork()
    if pid == 0:
        try:
            killer.seen, killer.left = 0, step
            work()  # type: ignore[operator]
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(9)
        os._exit(0)
    if seconds:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def finish(settings: Settings) -> None:
    backups.finish_restore(settings)


def tally(directory: Path, new: Path, old: Path, database: str, seed: str) -> dict[str, object]:
    data = directory / "data"
    settings = Settings(data=data, drivers="fake", database=database)
    killer = Killer(str(data))
    restore(settings, new)
    wanted_new = state(settings)
    template = directory / "template"

    def reset() -> None:
        shutil.rmtree(data, ignore_errors=True)
        if database:
            restore(settings, old)
            shutil.rmtree(data / "x", ignore_errors=True)
        elif template.exists():
            shutil.copytree(template, data)
        else:
            restore(settings, old)
            with_log(data)
            shutil.copytree(data, template)
        for path in data.glob("before-restore-*"):
            shutil.rmtree(path)

    reset()
    wanted_old = state(settings)
    assert wanted_old != wanted_new
    count = {"old": 0, "new": 0, "steps": 0, "moments": 0}
    mixed: list[str] = []

    def look(what: str) -> None:
        finish(settings)
        found = state(settings)
        left = [path.name for path in data.glob(".restor*")]
        if found == wanted_old:
            count["old"] += 1
        elif found == wanted_new:
            count["new"] += 1
        if found not in (wanted_old, wanted_new) or left:
            mixed.append(f"{what}: {left}")

    step, chance = 0, random.Random(seed)
    while True:
        step += 1 if not database else chance.randint(1, 6)
        reset()
        killed = forked(killer, settings, step, 0, lambda: restore(settings, new))
        if killed and swap.is_unfinished(data):
            # Whoever finishes it is killed, too.
            forked(killer, settings, chance.randint(1, 12), 0, lambda: finish(settings))
        look(f"step {step}")
        count["steps"] += 1
        if not killed:
            break
    whole = 0.3 if not database else 0.6
    while count["moments"] < (6 if database else 15):
        reset()
        forked(killer, settings, -1, chance.uniform(0.001, whole), lambda: restore(settings, new))
        look("a moment")
        count["moments"] += 1
    return {**count, "mixed": mixed}


def with_log(data: Path) -> None:
    """The old database is one that was killed: its last commits are in its write-ahead log only."""
    there, copy = data / "haneul.db", data / "copy"
    connection = sqlite3.connect(there, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("UPDATE key_pairs SET name = name || ' in the log'")
    copy.mkdir()
    for name in ("haneul.db", "haneul.db-wal"):
        shutil.copy(data / name, copy / name)
    connection.close()
    for path in copy.iterdir():
        path.replace(data / path.name)
    copy.rmdir()


if __name__ == "__main__":
    where, first, second, url, chance_seed = sys.argv[1:]
    print(json.dumps(tally(Path(where), Path(first), Path(second), url, chance_seed)))
