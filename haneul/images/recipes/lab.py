"""The image of the lab: Debian with what `haneul compare` measures with, and the same programs for the server itself.

A measurement of a guest beside its server says something about virtualization only if both run the same program. So
the recipe leaves, beside the image, a folder ``tools`` that runs anywhere on Linux:

``tools/bin``         the programs, as they are in the image
``tools/lib``         the shared libraries that they need and the dynamic loader, to be called as
                      ``tools/lib/ld-linux-x86-64.so.2 --library-path tools/lib tools/bin/PROGRAM``
``tools/share``       what they work on
"""

from __future__ import annotations

import shutil
from pathlib import Path

from haneul.images.build.tools import RecipeError, Say, in_tree, libraries, link
from haneul.images.recipes.debian import debian_image
from haneul.images.recipes.tiny import FULL_KERNEL

PACKAGES = (FULL_KERNEL, "sysbench", "fio", "iperf3", "gcc", "libc6-dev", "pciutils", "dmidecode")
SOURCE = Path(__file__).parents[2] / "lab" / "measure" / "bench.c"

#: The compiler proper is measured without the programs that gcc starts; its own place has gcc's version in it.
BENCH, COMPILER = "/usr/local/bin/haneul-bench", "/usr/local/bin/haneul-cc1"
COMPILED = "/usr/local/share/haneul-bench/bench.i"
PROGRAMS = ("/usr/bin/sysbench", "/usr/bin/fio", "/usr/bin/iperf3", BENCH, COMPILER)


def build_debian_lab(work: Path, output: Path, say: Say) -> None:
    """Build ``debian-12-lab``: ``debian-12-generic`` with programs that measure."""
    if not SOURCE.exists():
        raise RecipeError(f"{SOURCE} is missing")

    def add(tree: Path) -> None:
        say("compiling what the lab measures with")
        add_bench(tree, SOURCE.read_text())
        take_tools(tree, output / "tools")

    debian_image(work, output, say, PACKAGES, add)


def add_bench(tree: Path, source: str) -> None:
    """Compile our own program with the compiler of the tree, and keep its preprocessed source as work for that."""
    file = tree / "tmp" / "bench.c"
    file.write_text(source)
    (tree / COMPILED.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
    in_tree(tree, ["gcc", "-O2", "-static", "-o", BENCH, "/tmp/bench.c"])
    in_tree(tree, ["gcc", "-O2", "-E", "-o", COMPILED, "/tmp/bench.c"])
    file.unlink()
    link(tree / COMPILER.lstrip("/"), in_tree(tree, ["gcc", "-print-prog-name=cc1"]).strip())


def take_tools(tree: Path, tools: Path) -> None:
    """Copy the programs of the tree with all that they need to run elsewhere."""
    shared = {file for program in PROGRAMS if program != BENCH for file in libraries(tree, program)}
    for folder, paths in (("bin", PROGRAMS), ("lib", sorted(shared)), ("share", (COMPILED,))):
        (tools / folder).mkdir(parents=True)
        # Links are followed as the tree means them: an absolute one would lead out of it.
        for path, real in zip(paths, in_tree(tree, ["realpath", *paths]).split(), strict=True):
            shutil.copy(tree / real.lstrip("/"), tools / folder / Path(path).name)
