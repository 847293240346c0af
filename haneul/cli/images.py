"""Build, import, list and remove images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from haneul.cli.context import Cli, here
from haneul.cli.output import Json, out, print_json, progress
from haneul.cli.templates import sweep_templates
from haneul.errors import SettingsError
from haneul.images.store import DEFAULT, RECIPES

image_app = typer.Typer()


@image_app.command("build")
def image_build(
    ctx: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help=f"Recipes: {', '.join(RECIPES)}.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Build it even if it is there.")] = False,
) -> None:
    """Build images from packages (root). Without a name: the default image.

    Examples: `haneul image build`, `haneul image build tiny`, `haneul image build debian-12 --again`
    """
    cli = here(ctx)
    store = cli.lifecycle.images(cli.settings)
    for name in names or [DEFAULT]:
        if again:
            _need_unused(cli, name)
        with progress(every=True) as say:
            built = store.build(name, say, again=again)
        if again:
            sweep_templates(cli)
        out.print(f"{built.disk} is {built.image_id}", highlight=False)


@image_app.command("import")
def image_import(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="A disk image: a file, or an http(s) URL.")],
    name: Annotated[str, typer.Option(help="The image's name: 3 to 100 letters, digits and ._-")],
    format: Annotated[str, typer.Option(help="Of the file: qcow2, raw, vmdk or vhd. It is never guessed.")],
    user: Annotated[str, typer.Option(help="Who logs in to its instances.")] = "root",
    description: Annotated[str, typer.Option(help="For people who choose an image.")] = "",
    sha256: Annotated[str, typer.Option(metavar="HEX", help="Refuse a file with another SHA-256.")] = "",
    size_gib: Annotated[int, typer.Option(min=0, help="Least size of its root volumes, in GiB (0: the disk's).")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Replace an image of that name.")] = False,
) -> None:
    """Make a disk image of your own an image of the catalogue (root). It boots by its own boot loader, by BIOS.

    The file is taken for hostile: it is copied, checked and converted in a sandbox, and refused with the reason.

    Examples: `haneul image import web.vmdk --name web --format vmdk --user admin`,
    `haneul image import https://example.com/disk.qcow2 --name other --format qcow2 --sha256 HEX`
    """
    from haneul.images.importing.importer import Bounds, Wanted, import_image

    cli = here(ctx)
    if again:
        _need_unused(cli, name)
    wanted = Wanted(source, name, format, user, description, sha256, size_gib)
    bounds = Bounds(cli.settings.import_max_gib << 30, cli.settings.import_max_file_gib << 30)
    store = cli.lifecycle.images(cli.settings)
    with progress() as say:
        made = import_image(store, wanted, bounds, say, again=again, need_unused=lambda: _need_unused(cli, name))
    if again:
        sweep_templates(cli)
    out.print(f"{made.disk} is {made.image_id}", highlight=False)


def _need_unused(cli: Cli, name: str) -> None:
    users = cli.lifecycle.image_users(cli.settings, name)
    if users:
        raise SettingsError(f"volumes are made of {name}: {', '.join(users)}; terminate their instances first")


@image_app.command("list")
def image_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List the built images and the recipes that are not built."""
    cli = here(ctx)
    found = cli.lifecycle.images(cli.settings).catalogue()
    if as_json:
        print_json([asdict(one) | {"image_id": one.image_id} for one in found])
        return
    from rich.markup import escape

    table = Table("image", "AMI id", "user", "root GiB", "description")
    for one in found:
        origin = f" (imported, {one.imported})" if one.imported else ""
        table.add_row(one.disk, one.image_id, one.user, str(one.size_gib), escape(one.description) + origin)
    for name, recipe in RECIPES.items():
        if name not in {one.disk for one in found}:
            table.add_row(name, "(not built)", recipe.user, str(recipe.size_gib), recipe.description)
    out.print(table)


@image_app.command("rm")
def image_rm(ctx: typer.Context, name: Annotated[str, typer.Argument(help="The image's name.")]) -> None:
    """Remove a built image, and its templates. Instances that were launched from it lose their base: terminate them first."""
    cli = here(ctx)
    _need_unused(cli, name)
    cli.lifecycle.images(cli.settings).remove(name)
    sweep_templates(cli)
    out.print(f"{name} is removed")
