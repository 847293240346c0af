"""What happened."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from haneul.cli.context import Cli, here
from haneul.cli.output import Json, out, print_json
from haneul.errors import SettingsError

app = typer.Typer()


def journals(cli: Cli) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
    from haneul.records import journal

    return journal.read(cli.settings.data / journal.EVENTS), journal.read(cli.settings.data / journal.AUDIT)


@app.command()
def events(
    ctx: typer.Context,
    instance: Annotated[str, typer.Argument(help="Id of an instance (default: everything).")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last ones.")] = 50,
    as_json: Json = False,
) -> None:
    """Show what happened: calls that changed something, and what became of instances, with reasons.

    Examples: `haneul events`, `haneul events i-0123… --follow`, `haneul events --json | jq`
    """
    from haneul.records import journal, watching

    cli = here(ctx)

    def show(record: dict[str, Any]) -> None:
        if not instance or watching.concerns(record, instance):
            print(json.dumps(record, ensure_ascii=False) if as_json else watching.line(record), flush=True)

    coming = [journal.follow(cli.settings.data / name) for name in (journal.EVENTS, journal.AUDIT)]
    for one in coming:
        next(one)  # from here on
    for record in watching.merged(
        *journals(cli), keep=lambda one: not instance or watching.concerns(one, instance), most=lines
    ):
        show(record)
    while follow:
        new = [record for one in coming for record in iter(lambda one=one: next(one), None)]  # type: ignore[misc]
        for record in sorted(new, key=watching.time_of):
            show(record)
        time.sleep(0.2)


@app.command()
def trace(
    ctx: typer.Context,
    instance: Annotated[str, typer.Argument(help="Id of an instance.")],
    boot: Annotated[int, typer.Option(help="Which boot (default: the last).")] = 0,
    as_json: Json = False,
) -> None:
    """Show where the time of a launch went, step by step.

    Example: `haneul trace i-0123…`
    """
    from haneul.records import watching

    happened, calls = journals(here(ctx))
    boots = [one for one in happened if one.get("event") == "boot" and one["instance"] == instance]
    boots = [one for one in boots if boot in (0, one["boot"])]
    if not boots:
        raise SettingsError(f"nothing is known of a boot of {instance}: it is still on its way, or too long ago")
    last = boots[-1]
    bars = watching.waterfall(last, watching.call_of(last, calls))
    if as_json:
        print_json(
            {
                "instance": instance,
                "boot": last["boot"],
                "failed": last["failed"],
                "steps": [asdict(one) for one in bars],
            }
        )
        return
    out.print(f"[bold]{instance}[/], boot {last['boot']}, in seconds after it was ordered", highlight=False)
    for text in watching.drawn(bars, min(out.width, 110)):
        print(text)
    print(f"{'':<8} {bars[-1].ended - min(one.began for one in bars):>9.3f} s  in all")
    for bar in bars:
        if watching.STEPS.get(bar.name):
            out.print(f"  {bar.name}: {watching.STEPS[bar.name]}", highlight=False)
    if last["failed"]:
        raise SettingsError(f"the boot failed: {last['failed']}")
