"""The generations side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haneul.cli.context import Cli, here
from haneul.cli.events import journals
from haneul.cli.instances import ssh_command
from haneul.cli.output import Json, err, out, print_json
from haneul.cli.running import client, need_running, status_
from haneul.errors import SettingsError

app = typer.Typer()


@app.command()
def compare(
    ctx: typer.Context,
    generations: Annotated[str, typer.Option(help="Which ones: emulated,paravirtual,hvm (default: all).")] = "",
    workloads: Annotated[str, typer.Option(help="Which ones, with commas (default: all; docs/compare.md).")] = "",
    runs: Annotated[int, typer.Option(min=1, max=100, help="How often everything is measured.")] = 3,
    output: Annotated[Path, typer.Option(help="The folder of results and report.")] = Path("haneul-compare"),
    image: Annotated[str, typer.Option(help="The image to launch.")] = "debian-12-lab",
    again: Annotated[
        bool, typer.Option("--again", help="Begin anew: the results in the folder are not gone on with.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Launch an image under every generation of virtualization, run the same programs in each and on the bare server.

    Writes `report.html`, `report.png` and `results.json`. Interrupted and called again, it goes on with what is missing.

    Examples: `haneul compare`, `haneul compare --runs 1 --generations hvm --workloads boot,getppid,disk-sync`
    """
    from haneul.lab import run as lab
    from haneul.lab.measure.guests import Session
    from haneul.lab.report import costs, terminal

    cli = here(ctx)
    try:
        asked = lab.request(generations, workloads, runs, output, image, again)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    if cli.settings.drivers == "fake":
        raise SettingsError('fake drivers run no guest: there is nothing to compare (drivers = "auto" has real ones)')
    need_running(cli)
    if (status_(cli) or {}).get("drivers") == "fake":
        raise SettingsError(
            "this haneul was started with fake drivers, which run no guest: there is nothing to compare"
        )
    ec2 = client(cli)
    session = Session(ec2, lambda instance: ssh_command(cli, ec2, instance), lambda one: _machine_ran(cli, one))
    try:
        found = lab.run(
            asked, session, cli.settings.image_directory, cli.settings.data, lambda total: terminal.Watching(err, total)
        )
    except KeyboardInterrupt:
        err.print(
            f"interrupted; the same command goes on with what is missing in {output}", markup=False, highlight=False
        )
        raise
    if as_json:
        print_json(lab.summary(found))
        return
    whole = costs.of(found)
    out.print(terminal.table(whole, found))
    for line in terminal.absent(whole, found):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(f"{output / lab.PAGE}, {lab.PICTURE}, results.json", markup=False, highlight=False, soft_wrap=True)


def _machine_ran(cli: Cli, instance: str) -> float | None:
    """When the process of an instance's machine ran, as the trace of its last boot says; None if that is not told yet."""
    boots = [one for one in journals(cli)[0] if one.get("event") == "boot" and one["instance"] == instance]
    spans = {one["name"]: one["ended"] for one in boots[-1]["spans"]} if boots else {}
    return spans.get("machine")
