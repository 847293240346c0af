"""Templates of warm launch."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from haneul.cli.context import Cli, here
from haneul.cli.lifecycle import Say
from haneul.cli.output import NO, Json, err, out, print_json, progress
from haneul.cli.running import ask_running, order
from haneul.errors import SettingsError
from haneul.model import template
from haneul.model.template import TemplateReport

image_app = typer.Typer()

DEFAULT_TYPE = "t3.micro"


#: The first order after a start of the server waits for the probe of KVM.
_ORDER_SECONDS = 60.0


@image_app.command("warm")
def image_warm(
    ctx: typer.Context,
    image: Annotated[str, typer.Argument(help="The image's name.")],
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help=f"For instances of this type; may be repeated (default: {DEFAULT_TYPE})."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an image's templates now (root): saved machines of it, from which instances go on instead of booting.

    One serves one image and one instance type. haneul makes them by itself too, after a cold launch. It may run meanwhile, and then
    has them in memory at once, or be down. Exit code 1 if one could not be made.

    Examples: `haneul image warm debian-12`, `haneul image warm tiny --type t3.nano --type t3.micro`
    """
    cli = here(ctx)
    asked = list(dict.fromkeys(types or [DEFAULT_TYPE]))
    for one in asked:
        if why := template.why_not_type(one):
            raise typer.BadParameter(why, param_hint="--type")
    if not cli.lifecycle.images(cli.settings).has(image):
        raise SettingsError(f"there is no image {image!r}; `haneul image list` shows them")
    running = cli.lifecycle.is_running(cli.settings)
    if cli.settings.warm == "off" and not running:
        raise SettingsError('warm = "off" in the settings: instances boot, and have no templates')
    made = []
    for one in asked:
        began = time.monotonic()
        with progress(every=not as_json) as say:
            found = (
                _warm_running(cli, image, one, say)
                if running
                else cli.lifecycle.make_template(cli.settings, image, one, say)
            )
        made.append(found)
        if not as_json and found.state != "failed":
            out.print(_told_of_template(found, time.monotonic() - began, running), highlight=False, soft_wrap=True)
    if running:  # a later one may have taken the place of an earlier one in memory
        known = {_shape_of(one): one for one in _templates_of_running(cli)}
        made = [one if one.state == "failed" else known.get(_shape_of(one), one) for one in made]
    if as_json:
        print_json([asdict(one) for one in made])
    for found in made:
        if found.state == "failed":
            err.print(
                f"haneul: no template of {image} for {found.instance_type}: {found.reason}",
                markup=False,
                highlight=False,
            )
        elif running and found.state == "saved":
            err.print(
                f"haneul: the template of {image} for {found.instance_type} has no room in memory any more "
                f"(warm_max_mib = {cli.settings.warm_max_mib}): its next launch boots",
                markup=False, highlight=False,
            )  # fmt: skip
    if any(found.state == "failed" for found in made):
        raise typer.Exit(NO)


@image_app.command("templates")
def image_templates(ctx: typer.Context, as_json: Json = False) -> None:
    """List the templates: what instances go on from, what is being made, and what could not be made and why.

    `loaded` ones are in memory: the next launch goes on from them. `saved` ones are on disk, and loaded when they are wanted.

    Examples: `haneul image templates`, `haneul image templates --json | jq`
    """
    cli = here(ctx)
    running = cli.lifecycle.is_running(cli.settings)
    found = _templates_of_running(cli) if running else cli.lifecycle.templates(cli.settings)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        out.print("no templates; `haneul image warm IMAGE` makes one", highlight=False)
        return
    table = Table("image", "type", "vCPUs", "MiB", "by", "in memory", "on disk", "made", "last used", "state")
    for one in found:
        table.add_row(
            one.image, one.instance_type, str(one.vcpus), str(one.memory_mib), one.accelerator,
            _mib(one.memory_bytes) if one.state == "loaded" else "", _mib(one.disk_bytes) if one.disk_bytes else "",
            _moment(one.made), _moment(one.used), _state_of_template(one),
        )  # fmt: skip
    out.print(table)


def _shape_of(one: TemplateReport) -> tuple[str, str, str]:
    return one.image, one.instance_type, one.accelerator


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def _state_of_template(one: TemplateReport) -> str:
    from rich.markup import escape

    if one.state == "failed":
        return f"[red]failed[/]: {escape(one.reason)} (a launch tries again from {_moment(one.retry)} on)"
    return one.state + (f": {one.phase}" if one.phase else "")


def summary_of_templates(found: list[dict[str, Any]]) -> str:
    """One line of `haneul status`."""
    states = [one["state"] for one in found]
    told = ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(states))
    memory = sum(one["memory_bytes"] for one in found if one["state"] == "loaded")
    return f"templates: {told}; {_mib(memory)} of memory (`haneul image templates`)"


def _told_of_template(one: TemplateReport, seconds: float, running: bool) -> str:
    sizes = f"{_mib(one.memory_bytes)} of memory, {_mib(one.disk_bytes)} on disk"
    then = "the next launch goes on from it" if running else "`haneul up` loads it"
    return f"the template of {one.image} for {one.instance_type} is ready ({seconds:.1f} s; {sizes}): {then}"


def _templates_of_running(cli: Cli) -> list[TemplateReport]:
    return [TemplateReport(**one) for one in order(cli, "/templates/list", _ORDER_SECONDS)]


def _warm_running(cli: Cli, image: str, instance_type: str, say: Say) -> TemplateReport:
    """The running haneul makes it, and has it in memory then. Interrupted here, it goes on with that."""
    ordered = TemplateReport(**order(cli, "/templates/order", _ORDER_SECONDS, image=image, type=instance_type))
    while True:
        known = {_shape_of(one): one for one in _templates_of_running(cli)}
        found = known.get(_shape_of(ordered))
        if found is None:
            raise SettingsError(
                f"the template of {image} for {instance_type} is gone: was the image replaced meanwhile?"
            )
        if found.state in ("loaded", "saved", "failed"):
            return found
        if found.phase:
            say(found.phase)
        elif any(one.state == "being made" for one in known.values()):
            say("waiting for another template")
        time.sleep(0.3)


def sweep_templates(cli: Cli) -> None:
    """An image is gone, or another one: its templates go, now rather than when haneul notices."""
    if cli.settings.drivers == "fake":
        return
    if not cli.lifecycle.is_running(cli.settings):
        cli.lifecycle.sweep_templates(cli.settings)
        return
    try:
        ask_running(cli, "POST", "/templates/sweep", {})
    except (OSError, ValueError):
        pass  # it does so by itself
