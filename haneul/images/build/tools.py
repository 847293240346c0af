"""Tools of Debian's that build images: each runs alone, and dies with the build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from haneul.errors import WorldError

Say = Callable[[str], None]


SUITE = "bookworm"


SECTOR = 512


MIB = 1024 * 1024
ROOT_START = 2 * MIB
BOOT_START = 1 * MIB


class RecipeError(WorldError):
    """An image could not be built; the message holds the last lines of the tool that failed."""


TOOL_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def run(command: Sequence[str | Path], text: str = "") -> str:
    """Run one tool with ``text`` as its input and give back what it printed.

    The tool is killed when the thread that runs the recipe ends, however that happens: a build that was killed must
    not go on writing into the folder in which the next one has begun.
    """
    words = [str(word) for word in command]
    if shutil.which(words[0], path=TOOL_PATH) is None:
        raise RecipeError(f"{words[0]} is not installed")
    kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy") or name == "TMPDIR"}
    environment = kept | {"PATH": TOOL_PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    bound = ["setpriv", "--pdeathsig", "KILL", "--", *words]
    done = subprocess.run(
        bound, input=text, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise RecipeError(f"{' '.join(words[:6])} ... ended with {done.returncode}:\n{tail}")
    return done.stdout


def isolated(command: Sequence[str | Path]) -> list[str | Path]:
    """The command in mount and process namespaces of its own.

    mmdebstrap mounts /proc and /sys in the tree that it fills. Here those mounts are private, so they end with the
    processes; and since all processes end with the first one, killing a build cannot leave a mount or a process.
    """
    return ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL",
            "--mount-proc", "--", *command]  # fmt: skip


def in_tree(tree: Path, command: Sequence[str | Path]) -> str:
    """Run a program of the tree, with the tree as its root directory."""
    return run(isolated(["chroot", tree, *command]))


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file of the tree, whatever was there before (also a link, which must not be followed out of it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


_FILES = Path(__file__).parents[1] / "recipes" / "files"


def guest_file(name: str) -> str:
    """A file of a guest, as it lies below recipes/files."""
    return (_FILES / name).read_text()


def guest_files(folder: str) -> dict[str, str]:
    """Path in the guest -> text, of all files of a folder below recipes/files."""
    root = _FILES / folder
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def fresh(directory: Path) -> Path:
    """An empty directory, also when an earlier build was killed in the middle of it."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    return directory


def bootstrap(tree: Path, variant: str, packages: Iterable[str], options: Iterable[str] = ()) -> None:
    """Fill ``tree`` with Debian packages; no mirror is named, so that mmdebstrap's default applies."""
    run(isolated(["mmdebstrap", "--mode=root", "--format=directory", f"--variant={variant}",
                  f"--include={','.join(packages)}", "--aptopt=APT::Install-Recommends false",
                  "--aptopt=Acquire::Languages none", *options, SUITE, tree]))  # fmt: skip


def kernel_release(tree: Path) -> str:
    """The release of the one kernel in the tree, as in /lib/modules."""
    releases = sorted(path.name for path in (tree / "lib/modules").iterdir() if path.is_dir())
    if len(releases) != 1:
        raise RecipeError(f"expected one kernel in the tree, found {releases}")
    return releases[0]


def libraries(tree: Path, program: str) -> list[str]:
    """The shared libraries of a program of the tree, the dynamic loader included, as the loader itself finds them."""
    listed = in_tree(tree, ["/lib64/ld-linux-x86-64.so.2", "--list", program])
    return re.findall(r"(/\S+) \(0x", listed)


def copy_into(tree: Path, source: Path, path: str) -> None:
    """Copy one file of another tree, following links, to the same place."""
    target = tree / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / path.lstrip("/"), target)
    target.chmod(0o755)
