"""Start, stop and look at haneul; back it up."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from haneul import config
from haneul.cli.context import here
from haneul.cli.lifecycle import Finding
from haneul.cli.output import NO, Json, out, print_json, progress
from haneul.cli.running import status_
from haneul.cli.templates import summary_of_templates
from haneul.errors import SettingsError

app = typer.Typer()


@app.command()
def up(
    ctx: typer.Context,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Start in the background and return when it serves.")
    ] = False,
    accept_store: Annotated[
        bool,
        typer.Option(
            "--accept-store",
            help="Take the store as it is, though it does not know what is in the data directory: that stays, unclaimed.",
        ),
    ] = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start haneul. Instances that ran before are found again.

    Examples: `haneul up`, `haneul up --detach`, `HANEUL_DRIVERS=fake HANEUL_PORT=4567 haneul up`
    """
    cli = here(ctx)
    if not detach:
        cli.lifecycle.up(cli.settings, ready_fd, accept_store)
        return
    cli.lifecycle.start_detached(cli.settings, accept_store)
    out.print(
        f'haneul serves on {cli.settings.endpoint}; `eval "$(haneul env)"` points AWS tools at it', highlight=False
    )


@app.command(hidden=True)
def agent(
    ctx: typer.Context,
    socket: Annotated[Path, typer.Argument(help="The control plane's unix socket.")],
    server_id: Annotated[str, typer.Option(help="The server that this agent is of.")] = "server-1",
) -> None:
    """Run a server's agent in a process of its own."""
    cli = here(ctx)
    cli.lifecycle.agent(cli.settings, socket, server_id)


@app.command()
def down(
    ctx: typer.Context,
    instances: Annotated[bool, typer.Option("--instances", help="Shut the instances down too.")] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove every trace: instances, networks, images, data.")
    ] = False,
) -> None:
    """Stop haneul. Instances go on, unless you say otherwise.

    Examples: `haneul down`, `haneul down --instances`, `haneul down --purge`
    """
    cli = here(ctx)
    was_running = cli.lifecycle.down(cli.settings, instances, purge)
    if purge:
        out.print("nothing of haneul is left")
    elif was_running:
        out.print("haneul is stopped" + ("" if instances else "; instances go on"))
    else:
        out.print("haneul was not running")


@app.command()
def backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to write it; `.gz` or `.tgz` compresses.")],
    volumes: Annotated[bool, typer.Option("--volumes", help="Disks too; haneul and its instances are down.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write everything that haneul knows into one file: the store as of one moment, identity and keys.

    haneul may run meanwhile. The file holds secrets; `haneul.toml` is not in it.

    Examples: `haneul backup today.tgz`, `haneul down --instances && haneul backup --volumes all.tar`
    """
    cli = here(ctx)
    with progress() as say:
        told = cli.lifecycle.backup(cli.settings, file.absolute(), volumes, force, say)
    for line in told:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def restore(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A file that `haneul backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put aside the store that is there.")] = False,
    without_volumes: Annotated[
        bool, typer.Option("--without-volumes", help="Instances whose disks are missing start from their images.")
    ] = False,
) -> None:
    """Put a backup in force, here or on another server. haneul is down meanwhile.

    What is replaced is moved to `before-restore-…` in the data directory. Instances that ran are started by `haneul up`.

    Examples: `haneul restore today.tgz`, `haneul restore --replace today.tgz`
    """
    cli = here(ctx)
    with progress() as say:
        told = cli.lifecycle.restore(cli.settings, file.absolute(), replace, without_volumes, say)
    for line in told:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def status(ctx: typer.Context, as_json: Json = False) -> None:
    """Show the server and its instances, how each is virtualized and what it is doing.

    Exit code 1 if haneul is not running.
    """
    cli = here(ctx)
    found = status_(cli)
    if as_json:
        print_json({"running": found is not None} | (found or {}))
    elif found is None:
        out.print(f"haneul is not running on {cli.settings.data}; `haneul up --detach` starts it", highlight=False)
    else:
        _show_status(found)
    if found is None:
        raise typer.Exit(NO)


def _show_status(found: dict[str, Any]) -> None:
    out.print(
        f"[bold]haneul[/] serves on {found['endpoint']} (auth {found['auth']}, drivers {found['drivers']}, uplink {found['uplink']})"
    )
    for server in found["servers"]:
        used, total = server["reserved_memory_mib"], server["memory_mib"]
        out.print(
            f"{server['server']} ({server['hostname']}): {used} of {total} MiB and {server['reserved_vcpus']} of {server['vcpus']} vCPUs promised"
        )
        for name, why in (server["accelerators"] | server.get("generations", {})).items():
            out.print(f"  {name}: {why or 'usable'}", highlight=False)
    if found.get("templates"):
        out.print(summary_of_templates(found["templates"]), highlight=False)
    table = Table("instance", "state", "type", "image", "virtualized", "doing", "private", "public", "region")
    for one in found["instances"]:
        table.add_row(
            one["instance"], one["state"], one["type"], one["image"], one.get("virtualized", one["accelerator"]),
            one["reason"] if one["state"] in ("stopped", "terminated") else one["phase"],
            one["address"], one["public_address"], one["region"],
        )  # fmt: skip
    out.print(table if found["instances"] else "no instances")
    if found.get("unclaimed"):
        kinds = [one["kind"] for one in found["unclaimed"]]
        told = ", ".join(f"{kinds.count(kind)} {kind}s" for kind in dict.fromkeys(kinds))
        out.print(
            f"[yellow]unclaimed:[/] {told} are here that the store does not know; they are left alone (`haneul unclaimed list`)"
        )
    for problem in found["problems"]:
        out.print(f"[red]problem:[/] {problem}")


@app.command()
def env(ctx: typer.Context) -> None:
    """Print the variables that point AWS tools at haneul.

    Example: `eval "$(haneul env)"; aws ec2 describe-instances`
    """
    cli = here(ctx)
    access_key, secret = cli.lifecycle.identity(cli.settings).read_credentials()
    values = {
        "AWS_ENDPOINT_URL": cli.settings.endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": cli.settings.region,
        "AWS_REGION": cli.settings.region,
    }
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    print("unset AWS_PROFILE AWS_SESSION_TOKEN")
    place = str(Path(sys.executable).parent)
    if place not in os.environ.get("PATH", "").split(os.pathsep):
        print(f'export PATH={shlex.quote(place)}:"$PATH"')


@app.command("config")
def show_config(ctx: typer.Context, as_json: Json = False) -> None:
    """Print every setting, its value and where that came from."""
    found = config.sources()
    config.load()
    if as_json:
        print_json({one.name: {"value": one.value, "origin": one.origin, "text": one.text} for one in found})
        return
    table = Table("setting", "value", "from", "what it is")
    for one in found:
        table.add_row(one.name, "" if one.value is None else str(one.value), one.origin, one.text)
    out.print(table)


def _of_the_store(running: dict[str, Any] | None) -> list[Finding]:
    """What the haneul that runs knows of its store and this server."""
    if running is None:
        return []
    left = running.get("unclaimed", [])
    how = (
        f"{len(left)} things here are unclaimed: {', '.join(one['id'] for one in left[:5])}"
        if left
        else "asked the running haneul"
    )
    advice = "`haneul unclaimed list`; is this the right store (setting `database`)?" if left else ""
    return [Finding("everything here is known to the store", not left, how, advice, needed=False)]


@app.command()
def doctor(ctx: typer.Context, as_json: Json = False) -> None:
    """Say what this server can do, how that was found out, and what to do about the rest.

    Exit code 1 if real virtual servers cannot be launched here.
    """
    cli = here(ctx)
    found = [*cli.lifecycle.doctor(cli.settings), *_of_the_store(status_(cli))]
    healthy = all(one.ok for one in found if one.needed)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(one) for one in found]})
    else:
        table = Table("what", "", "how that was found out", "what to do")
        for one in found:
            no = "[red]no[/]" if one.needed else "[yellow]no[/]"
            table.add_row(one.name, "[green]yes[/]" if one.ok else no, one.how, one.advice)
        out.print(table)
    if not healthy:
        raise typer.Exit(NO)


@app.command()
def logs(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 100,
) -> None:
    """Print haneul's own log.

    Examples: `haneul logs -n 20`, `haneul logs --follow`
    """
    cli = here(ctx)
    path = cli.lifecycle.log(cli.settings)
    if not path.exists():
        raise SettingsError(f"there is no log at {path}: haneul has not run there")
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    sys.stdout.flush()
    os.execvp(command[0], command)
