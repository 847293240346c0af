"""Log in to an instance, and see its console."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from haneul.cli.context import Cli, here
from haneul.cli.output import progress
from haneul.cli.running import Region, client, need_running
from haneul.errors import SettingsError

app = typer.Typer()

SSH_SECONDS = 600.0


def _find(ec2: Any, name: str) -> dict[str, Any]:
    """An instance by its id, its Name tag or one of its addresses. Raises `SettingsError`."""
    alive = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
    ways = ["instance-id"] if name.startswith("i-") else ["tag:Name", "ip-address", "private-ip-address"]
    for way in ways:
        answer = ec2.describe_instances(Filters=[{"Name": way, "Values": [name]}, alive])
        found = [one for reservation in answer["Reservations"] for one in reservation["Instances"]]
        if len(found) > 1:
            ids = ", ".join(one["InstanceId"] for one in found)
            raise SettingsError(f"several instances are called {name}: {ids}; give an id")
        if found:
            instance: dict[str, Any] = found[0]
            return instance
    raise SettingsError(f"there is no instance {name} in {ec2.meta.region_name}; `haneul status` shows all of them")


def tags(one: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])}


def _user(ec2: Any, instance: dict[str, Any]) -> str:
    """Who logs in to instances of this image: the image says so in a tag."""
    stand_in = tags(instance).get("aws:haneul:stands-in", "").partition(" ")[0]
    wanted = (
        {"Name": "name", "Values": [stand_in]} if stand_in else {"Name": "image-id", "Values": [instance["ImageId"]]}
    )
    images = ec2.describe_images(Filters=[wanted])["Images"]
    return tags(images[0]).get("aws:haneul:user", "root") if images else "root"


def ssh_command(cli: Cli, ec2: Any, instance: dict[str, Any]) -> list[str]:
    address = instance.get("PublicIpAddress")
    if not address:
        raise SettingsError(f"{instance['InstanceId']} is {instance['State']['Name']} and has no public address")
    who = cli.lifecycle.identity(cli.settings)
    options = {
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(who.directory / "known_hosts"),
        "HostKeyAlias": instance["InstanceId"],
        "StrictHostKeyChecking": "accept-new",
        "LogLevel": "ERROR",
        "ConnectTimeout": "10",
    }
    given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    return ["ssh", "-i", str(who.ssh_key), *given, f"{_user(ec2, instance)}@{address}"]


def _last_line(ec2: Any, instance_id: str) -> str:
    text = ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", "")
    lines = [_printable(line) for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _printable(line: str) -> str:
    import re

    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b.", "", line)
    return "".join(character for character in line if character.isprintable()).strip()[:100]


def wait_for_ssh(ec2: Any, instance_id: str, say: Callable[..., None]) -> dict[str, Any]:
    """The instance, once its SSH server greets. Tells phase, elapsed time and the last console line meanwhile."""
    from haneul.lab.measure.guests import greets

    began = time.monotonic()
    while True:
        found = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
        state = found["State"]["Name"]
        if state in ("stopping", "stopped", "shutting-down", "terminated"):
            why = found.get("StateReason", {}).get("Message", "no reason given")
            raise SettingsError(f"{instance_id} is {state}: {why}")
        if state == "running" and greets(found.get("PublicIpAddress", "")):
            instance: dict[str, Any] = found
            return instance
        elapsed = time.monotonic() - began
        if elapsed > SSH_SECONDS:
            raise SettingsError(
                f"{instance_id} does not answer by SSH after {elapsed:.0f} s; `haneul console {instance_id}` shows what it says"
            )
        said = _last_line(ec2, instance_id) or "the firmware is starting"
        waits = "has not begun yet" if state == "pending" else "runs; waiting for its SSH server"
        say(f"{instance_id} {state}, {elapsed:.0f} s: {said}", phase=f"{instance_id} {waits}")
        time.sleep(1.0)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def ssh(
    ctx: typer.Context,
    instance: Annotated[str, typer.Argument(help="Id, Name tag or address of an instance.")],
    command: Annotated[list[str] | None, typer.Argument(help="A command to run there.")] = None,
    region: Region = "",
    wait: Annotated[bool, typer.Option(help="Wait for an instance that is still booting.")] = True,
) -> None:
    """Log in to an instance, or run a command there; user, key and address are found by haneul.

    Examples: `haneul ssh i-0123…`, `haneul ssh web uname -a`
    """
    cli = here(ctx)
    need_running(cli)
    ec2 = client(cli, region)
    found = _find(ec2, instance)
    if wait and found["State"]["Name"] in ("pending", "running"):
        with progress() as say:
            found = wait_for_ssh(ec2, found["InstanceId"], say)
    arguments = [*ssh_command(cli, ec2, found), *(command or [])]
    os.execvp(arguments[0], arguments)


@app.command()
def console(
    ctx: typer.Context,
    instance: Annotated[str, typer.Argument(help="Id, Name tag or address of an instance.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    attach: Annotated[bool, typer.Option("--attach", "-a", help="Type on the serial console; Ctrl-] leaves.")] = False,
    region: Region = "",
) -> None:
    """Print what an instance wrote on its serial console.

    Examples: `haneul console i-0123…`, `haneul console web --follow`, `haneul console web --attach`
    """
    cli = here(ctx)
    need_running(cli)
    ec2 = client(cli, region)
    instance_id = _find(ec2, instance)["InstanceId"]
    seen = ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", "")
    sys.stdout.write(seen)
    sys.stdout.flush()
    if attach:
        _attach(cli.lifecycle.console_socket(cli.settings, instance_id))
    while follow:
        time.sleep(0.5)
        text = ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", "")
        sys.stdout.write(_new_part(seen, text))
        sys.stdout.flush()
        seen = text


def _new_part(seen: str, text: str) -> str:
    """What `text` has beyond `seen`; both are windows on the same growing log."""
    if text.startswith(seen):
        return text[len(seen) :]
    tail = seen[-200:]
    place = text.rfind(tail)
    return text[place + len(tail) :] if place >= 0 else text


def _attach(path: Path) -> None:
    """Join the terminal and the machine's serial port, until Ctrl-]."""
    import select
    import socket
    import termios
    import tty

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as serial:
        try:
            serial.connect(str(path))
        except OSError as error:
            raise SettingsError(f"the serial port cannot be opened: {error.strerror}") from None
        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
        try:
            if before is not None:
                tty.setraw(keyboard)
            while True:
                ready = select.select([serial, keyboard], [], [])[0]
                if serial in ready:
                    data = serial.recv(4096)
                    if not data:
                        return
                    os.write(1, data)
                if keyboard in ready:
                    typed = os.read(keyboard, 1024)
                    if not typed or b"\x1d" in typed:
                        return
                    serial.sendall(typed)
        finally:
            if before is not None:
                termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
