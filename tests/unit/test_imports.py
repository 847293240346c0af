"""Who may know whom. A folder imports what its row allows, and nothing else: a new folder has to be given a row.

Imports inside functions and for types count too: what a folder knows, it depends on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import haneul

ROOT = Path(haneul.__file__).parent
#: Files beside the folders that everybody may know: settings, errors, the version.
BASE = {"config", "errors", "__version__"}

ALLOWED: dict[str, set[str]] = {
    "__main__": {"app", "cli"},
    # The one folder that puts concrete parts together.
    "app": {
        "agent", "api", "backup", "cli", "drivers", "drivers/disks", "drivers/host", "drivers/machines", "drivers/networks", "identity",
        "images", "linux", "model", "reconcile", "records", "services", "services/ec2", "services/iam", "services/ssm", "services/sts",
        "store",
    },
    "cli": {"identity", "images", "lab", "model", "records"},
    "api": {"model", "records", "services"},
    "services": {"model", "store"},
    "services/ec2": {"model", "services", "store"},
    "services/iam": {"model", "services", "store"},
    "services/ssm": {"model", "services", "services/ec2", "store"},
    "services/sts": {"model", "services", "store"},
    "reconcile": {"model", "store"},
    "store": {"model"},
    "agent": {"drivers", "model"},
    # The doors (interface.py), the fakes behind them, and what the drivers share.
    "drivers": {"linux", "model"},
    "drivers/machines": {"drivers", "linux", "model"},
    "drivers/networks": {"drivers", "linux", "model"},
    "drivers/disks": {"drivers", "linux", "model"},
    # Its probes boot a guest.
    "drivers/host": {"drivers", "drivers/machines", "linux", "model"},
    # A process of its own on every server, which stays small.
    "metadata_service": set(),
    "linux": set(),
    "model": set(),
    "records": {"linux"},
    "identity": {"linux", "model"},
    "images": {"linux", "model"},
    "backup": {"identity", "linux", "model", "store"},
    # A client of the public API.
    "lab": {"model"},
    "pytest_plugin": set(),
}  # fmt: skip


def _room(module: str) -> str:
    """The folder that a module is of: two names deep for drivers and services."""
    place, names = ROOT, module.split(".")[1:]
    folders: list[str] = []
    for name in names:
        if not (place / name).is_dir():
            break
        folders.append(name)
        place /= name
    if not folders:
        return names[0] if names else "haneul"
    return "/".join(folders[:2]) if folders[0] in ("drivers", "services") else folders[0]


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "haneul":
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.split(".")[0] == "haneul")


def _edges() -> Iterator[tuple[str, str, str]]:
    """(folder, folder that it imports, file)."""
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        for imported in _imported(ast.parse(file.read_text())):
            yield _room(module), _room(imported), str(file.relative_to(ROOT.parent))


def test_imports_are_those_that_are_allowed() -> None:
    wrong = sorted(
        {
            f"{file}: {folder} may not import {other}"
            for folder, other, file in _edges()
            if other not in {folder, *BASE} and other not in ALLOWED.get(folder, set()) and folder not in BASE
        }
    )
    assert not wrong, "\n".join(wrong)


def test_every_folder_has_a_row_and_every_row_a_folder() -> None:
    folders = {_room(".".join(file.relative_to(ROOT.parent).with_suffix("").parts)) for file in ROOT.rglob("*.py")}
    assert folders - BASE - {"__init__"} == ALLOWED.keys()


def test_there_is_no_circle() -> None:
    """Neither between folders nor, at import time, between modules."""
    edges: dict[str, set[str]] = {}
    for folder, other, _ in _edges():
        if folder != other:
            edges.setdefault(folder, set()).add(other)
    assert not _circle(edges)


def test_there_is_no_circle_of_modules() -> None:
    modules = {
        ".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in ROOT.rglob("*.py")
    }
    edges: dict[str, set[str]] = {}
    for module, file in modules.items():
        tree = ast.parse(file.read_text())
        for imported in _imported(ast.Module([one for one in tree.body if not isinstance(one, ast.If)], [])):
            target = imported if imported in modules else imported.rpartition(".")[0]
            # A package that gathers its own modules is no circle with them.
            if target in modules and target != module and not module.startswith(f"{target}."):
                edges.setdefault(module, set()).add(target)
    assert not _circle(edges)


def _circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle, if there is any."""
    done: set[str] = set()

    def walk(one: str, way: list[str]) -> list[str]:
        if one in way:
            return [*way[way.index(one) :], one]
        if one in done:
            return []
        for other in sorted(edges.get(one, ())):
            if found := walk(other, [*way, one]):
                return found
        done.add(one)
        return []

    for start in sorted(edges):
        if found := walk(start, []):
            return found
    return []
