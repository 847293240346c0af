"""A PostgreSQL server of the tests' own: Debian's programs, a folder, a unix socket; no port, no service."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

#: PostgreSQL refuses to run as root; any uid that is nobody's will do.
UID = 65534
#: Where scripts/postgresql puts packages that are not installed.
UNPACKED = "/build/postgresql/"


def programs() -> Path | None:
    """The folder of initdb and postgres: what scripts/postgresql found, or what is installed."""
    named = os.environ.get("HANEUL_TEST_POSTGRESQL", "")
    found = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((one for one in reversed(found) if (one / "initdb").exists()), None)


class Server:
    """A running server; `database()` makes an empty database and gives its URL."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made = 0

    def url(self, name: str) -> str:
        return f"postgresql://haneul@/{name}?unix_sock={self.directory}/.s.PGSQL.5432"

    def database(self) -> str:
        self._made += 1
        name = f"test{self._made}"
        engine = sa.create_engine(self.url("postgres").replace("://", "+pg8000://"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE template0"))
        engine.dispose()
        return self.url(name)


@contextmanager
def server(programs: Path) -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="haneul-postgresql-", dir="/var/tmp"))
    try:
        if UNPACKED in str(programs):
            # Its uid may not enter the folder of the project. The programs find their other files by where they are.
            root = programs.parents[4]
            shutil.copytree(root, directory / "programs", symlinks=True)
            programs = directory / "programs" / programs.relative_to(root)
        with _running(programs, directory):
            yield Server(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _running(programs: Path, directory: Path) -> Iterator[None]:
    as_nobody = []
    if os.geteuid() == 0:
        os.chown(directory, UID, UID)
        as_nobody = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(directory)}
    unpacked = programs.parents[2] / "x86_64-linux-gnu"
    if programs.is_relative_to(directory) and unpacked.is_dir():
        environment["LD_LIBRARY_PATH"] = str(unpacked)
    options = {"env": environment, "cwd": directory, "stdin": subprocess.DEVNULL}
    data = directory / "data"
    made = [programs / "initdb", "-D", data, "-U", "haneul", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run([*as_nobody, *made], check=True, capture_output=True, **options)  # type: ignore[call-overload]
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(directory),
        "max_connections": "200",
        "fsync": "off",
    }
    given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (directory / "log").open("wb") as said:
        running = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *as_nobody[1:], programs / "postgres", "-D", data, *given],
            stdout=said, stderr=said, **options,  # type: ignore[call-overload]
        )  # fmt: skip
        try:
            ready = [programs / "pg_isready", "-q", "-h", directory, "-t", "30"]
            for _ in range(600):
                if subprocess.run(ready, check=False, **options).returncode == 0:  # type: ignore[call-overload]
                    break
                if running.poll() is not None:
                    raise AssertionError((directory / "log").read_text())
            yield
        finally:
            running.send_signal(2)  # "fast": sessions are ended
            running.wait(20)
