"""What is on this server and its store does not know."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from haneul.cli.context import here
from haneul.cli.output import Json, out, print_json
from haneul.cli.running import order

unclaimed_app = typer.Typer()


@unclaimed_app.command("list")
def unclaimed_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List machines, volumes and networks that are here and that the store does not know. haneul leaves them alone.

    They are there when the store was lost, or is an older copy of itself: the right one claims them again.
    """
    found = order(here(ctx), "/unclaimed/list")
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("everything here is known to the store")
        return
    table = Table("what", "id")
    for one in found:
        table.add_row(one["kind"], one["id"])
    out.print(table)


@unclaimed_app.command("rm")
def unclaimed_rm(
    ctx: typer.Context, ids: Annotated[list[str], typer.Argument(help="Ids that `haneul unclaimed list` shows.")]
) -> None:
    """Remove what is unclaimed, for good: a machine ends, a volume's data are gone.

    Example: `haneul unclaimed rm vol-0123…`
    """
    for one in ids:
        gone = order(here(ctx), "/unclaimed/remove", id=one)
        out.print(f"the {gone['kind']} {gone['id']} is removed", highlight=False)
