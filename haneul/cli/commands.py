"""The commands. They use the public API, as any client, and what `Lifecycle` offers beside it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.table import Table

from haneul import __version__, config
from haneul.config import Settings
from haneul.errors import SettingsError
from haneul.images.store import DEFAULT, RECIPES, ImageStore
from haneul.model import template
from haneul.model.template import TemplateReport

if TYPE_CHECKING:
    from haneul.identity import Identity

#: Exit codes: 1 for "no" (not running, unhealthy), 2 for a mistake in the call, 3 for what this machine refuses.
NO, WRONG, REFUSED = 1, 2, 3
Say = Callable[[str], None]
QUICKSTART = "haneul-quickstart"
DEFAULT_TYPE = "t3.micro"
SSH_SECONDS = 600.0


@dataclass(frozen=True)
class Finding:
    """One line of `haneul doctor`: is it there, how was that found out, what to do about it.

    What is not `needed` makes more possible; without it virtual servers are launched all the same.
    """

    name: str
    ok: bool
    how: str
    advice: str
    needed: bool = True


class Lifecycle(Protocol):
    def up(self, settings: Settings, ready_fd: int | None) -> None: ...

    def start_detached(self, settings: Settings) -> None: ...

    def agent(self, settings: Settings, socket: Path, server_id: str) -> None: ...

    def is_running(self, settings: Settings) -> bool: ...

    def down(self, settings: Settings, instances: bool, purge: bool) -> bool: ...

    def backup(self, settings: Settings, file: Path, volumes: bool, force: bool, say: Say) -> list[str]: ...

    def restore(self, settings: Settings, file: Path, replace: bool, without_volumes: bool, say: Say) -> list[str]: ...

    def identity(self, settings: Settings) -> Identity: ...

    def control(self, settings: Settings) -> Path: ...

    def log(self, settings: Settings) -> Path: ...

    def console_socket(self, settings: Settings, instance_id: str) -> Path: ...

    def images(self, settings: Settings) -> ImageStore: ...

    def image_users(self, settings: Settings, name: str) -> list[str]: ...

    def templates(self, settings: Settings) -> list[TemplateReport]: ...

    def make_template(self, settings: Settings, image: str, instance_type: str, say: Say) -> TemplateReport: ...

    def sweep_templates(self, settings: Settings) -> None: ...

    def doctor(self, settings: Settings) -> list[Finding]: ...


#: A pipe has no width: what is cut there is lost.
out = Console() if sys.stdout.isatty() else Console(width=200)
err = Console(stderr=True)
_lifecycle: Lifecycle

app = typer.Typer(
    help="haneul: the EC2 API that boots a kernel.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
image_app = typer.Typer(help="Build, import, list, warm and remove images.", no_args_is_help=True)
app.add_typer(image_app, name="image")
account_app = typer.Typer(help="Accounts and their access keys.", no_args_is_help=True)
app.add_typer(account_app, name="account")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Region = Annotated[str, typer.Option(help="The region to look in (default: the setting `region`).")]


def run(lifecycle: Lifecycle) -> int:
    """The exit code. Errors are one line that says what to do."""
    global _lifecycle
    _lifecycle = lifecycle
    try:
        code = app(standalone_mode=False)
    except SettingsError as error:
        err.print(f"haneul: {error}", markup=False, highlight=False, soft_wrap=True)
        return REFUSED
    except PermissionError as error:
        err.print(
            f"haneul: {error.filename or error}: permission denied; this needs root: use sudo",
            markup=False,
            highlight=False,
        )
        return REFUSED
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return 0
        err.print(f"haneul: {error.filename or ''}: {error.strerror or error}", markup=False, highlight=False)
        return REFUSED
    except typer.Exit as ending:
        return ending.exit_code
    except typer.Abort:
        return WRONG
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command line itself
            error.show()
            return WRONG
        message = getattr(error, "response", {}).get("Error", {})
        if message:
            err.print(f"haneul: {message['Code']}: {message['Message']}", markup=False, highlight=False, soft_wrap=True)
            return NO
        raise
    return code if isinstance(code, int) else 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"haneul {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- life ---------------------------------------------------------------------------------------------


@app.command()
def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Start in the background and return when it serves.")
    ] = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start haneul. Instances that ran before are found again.

    Examples: `haneul up`, `haneul up --detach`, `HANEUL_DRIVERS=fake HANEUL_PORT=4567 haneul up`
    """
    settings = config.load()
    if not detach:
        _lifecycle.up(settings, ready_fd)
        return
    _lifecycle.start_detached(settings)
    out.print(f'haneul serves on {settings.endpoint}; `eval "$(haneul env)"` points AWS tools at it', highlight=False)


@app.command(hidden=True)
def agent(
    socket: Annotated[Path, typer.Argument(help="The control plane's unix socket.")],
    server_id: Annotated[str, typer.Option(help="The server that this agent is of.")] = "server-1",
) -> None:
    """Run a server's agent in a process of its own."""
    _lifecycle.agent(config.load(), socket, server_id)


@app.command()
def down(
    instances: Annotated[bool, typer.Option("--instances", help="Shut the instances down too.")] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove every trace: instances, networks, images, data.")
    ] = False,
) -> None:
    """Stop haneul. Instances go on, unless you say otherwise.

    Examples: `haneul down`, `haneul down --instances`, `haneul down --purge`
    """
    was_running = _lifecycle.down(config.load(), instances, purge)
    if purge:
        out.print("nothing of haneul is left")
    elif was_running:
        out.print("haneul is stopped" + ("" if instances else "; instances go on"))
    else:
        out.print("haneul was not running")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="Where to write it; `.gz` or `.tgz` compresses.")],
    volumes: Annotated[bool, typer.Option("--volumes", help="Disks too; haneul and its instances are down.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write everything that haneul knows into one file: the store as of one moment, identity and keys.

    haneul may run meanwhile. The file holds secrets; `haneul.toml` is not in it.

    Examples: `haneul backup today.tgz`, `haneul down --instances && haneul backup --volumes all.tar`
    """
    with _progress() as say:
        told = _lifecycle.backup(config.load(), file.absolute(), volumes, force, say)
    for line in told:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def restore(
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
    with _progress() as say:
        told = _lifecycle.restore(config.load(), file.absolute(), replace, without_volumes, say)
    for line in told:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _ask_running(settings: Settings, method: str, path: str, body: Any = None, timeout: float = 30) -> tuple[int, Any]:
    """(HTTP status, answer) of the running haneul's control socket. Raises OSError or ValueError."""
    import http.client
    import socket

    connection = http.client.HTTPConnection("haneul", timeout=timeout)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout)
    try:
        connection.sock.connect(str(_lifecycle.control(settings)))
        connection.request(method, path, json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _status(settings: Settings) -> dict[str, Any] | None:
    """What the running haneul says of itself, or None."""
    if not _lifecycle.is_running(settings):
        return None
    try:
        found: dict[str, Any] = _ask_running(settings, "GET", "/status")[1]
        return found
    except (OSError, ValueError):
        return None


@app.command()
def status(as_json: Json = False) -> None:
    """Show the server and its instances, how each is virtualized and what it is doing.

    Exit code 1 if haneul is not running.
    """
    settings = config.load()
    found = _status(settings)
    if as_json:
        _print_json({"running": found is not None} | (found or {}))
    elif found is None:
        out.print(f"haneul is not running on {settings.data}; `haneul up --detach` starts it", highlight=False)
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
        out.print(_summary_of_templates(found["templates"]), highlight=False)
    table = Table("instance", "state", "type", "image", "virtualized", "doing", "private", "public", "region")
    for one in found["instances"]:
        table.add_row(
            one["instance"], one["state"], one["type"], one["image"], one.get("virtualized", one["accelerator"]),
            one["reason"] if one["state"] in ("stopped", "terminated") else one["phase"],
            one["address"], one["public_address"], one["region"],
        )  # fmt: skip
    out.print(table if found["instances"] else "no instances")
    for problem in found["problems"]:
        out.print(f"[red]problem:[/] {problem}")


@app.command()
def env() -> None:
    """Print the variables that point AWS tools at haneul.

    Example: `eval "$(haneul env)"; aws ec2 describe-instances`
    """
    settings = config.load()
    access_key, secret = _lifecycle.identity(settings).read_credentials()
    values = {
        "AWS_ENDPOINT_URL": settings.endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_REGION": settings.region,
    }
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    print("unset AWS_PROFILE AWS_SESSION_TOKEN")
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        print(f'export PATH={shlex.quote(here)}:"$PATH"')


@app.command("config")
def show_config(as_json: Json = False) -> None:
    """Print every setting, its value and where that came from."""
    found = config.sources()
    config.load()
    if as_json:
        _print_json({one.name: {"value": one.value, "origin": one.origin, "text": one.text} for one in found})
        return
    table = Table("setting", "value", "from", "what it is")
    for one in found:
        table.add_row(one.name, "" if one.value is None else str(one.value), one.origin, one.text)
    out.print(table)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this server can do, how that was found out, and what to do about the rest.

    Exit code 1 if real virtual servers cannot be launched here.
    """
    settings = config.load()
    found = _lifecycle.doctor(settings)
    healthy = all(one.ok for one in found if one.needed)
    if as_json:
        _print_json({"healthy": healthy, "findings": [asdict(one) for one in found]})
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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 100,
) -> None:
    """Print haneul's own log.

    Examples: `haneul logs -n 20`, `haneul logs --follow`
    """
    path = _lifecycle.log(config.load())
    if not path.exists():
        raise SettingsError(f"there is no log at {path}: haneul has not run there")
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    sys.stdout.flush()
    os.execvp(command[0], command)


def _journals(settings: Settings) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
    from haneul.records import journal

    return journal.read(settings.data / journal.EVENTS), journal.read(settings.data / journal.AUDIT)


@app.command()
def events(
    instance: Annotated[str, typer.Argument(help="Id of an instance (default: everything).")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last ones.")] = 50,
    as_json: Json = False,
) -> None:
    """Show what happened: calls that changed something, and what became of instances, with reasons.

    Examples: `haneul events`, `haneul events i-0123… --follow`, `haneul events --json | jq`
    """
    from haneul.records import journal, watching

    settings = config.load()

    def show(record: dict[str, Any]) -> None:
        if not instance or watching.concerns(record, instance):
            print(json.dumps(record, ensure_ascii=False) if as_json else watching.line(record), flush=True)

    coming = [journal.follow(settings.data / name) for name in (journal.EVENTS, journal.AUDIT)]
    for one in coming:
        next(one)  # from here on
    for record in watching.merged(
        *_journals(settings), keep=lambda one: not instance or watching.concerns(one, instance), most=lines
    ):
        show(record)
    while follow:
        new = [record for one in coming for record in iter(lambda one=one: next(one), None)]  # type: ignore[misc]
        for record in sorted(new, key=watching.time_of):
            show(record)
        time.sleep(0.2)


@app.command()
def trace(
    instance: Annotated[str, typer.Argument(help="Id of an instance.")],
    boot: Annotated[int, typer.Option(help="Which boot (default: the last).")] = 0,
    as_json: Json = False,
) -> None:
    """Show where the time of a launch went, step by step.

    Example: `haneul trace i-0123…`
    """
    from haneul.records import watching

    happened, calls = _journals(config.load())
    boots = [one for one in happened if one.get("event") == "boot" and one["instance"] == instance]
    boots = [one for one in boots if boot in (0, one["boot"])]
    if not boots:
        raise SettingsError(f"nothing is known of a boot of {instance}: it is still on its way, or too long ago")
    last = boots[-1]
    bars = watching.waterfall(last, watching.call_of(last, calls))
    if as_json:
        _print_json(
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


# --- instances ----------------------------------------------------------------------------------------


def _client(settings: Settings, region: str = "") -> Any:
    import boto3
    from botocore.config import Config

    access_key, secret = _lifecycle.identity(settings).read_credentials()
    return boto3.client(
        "ec2",
        endpoint_url=settings.endpoint,
        region_name=region or settings.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        config=Config(retries={"max_attempts": 2}, connect_timeout=5),
    )


def _need_running(settings: Settings) -> None:
    if not _lifecycle.is_running(settings):
        raise SettingsError("haneul is not running; `haneul up --detach` starts it")


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


def _tags(one: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])}


def _user(ec2: Any, instance: dict[str, Any]) -> str:
    """Who logs in to instances of this image: the image says so in a tag."""
    stand_in = _tags(instance).get("aws:haneul:stands-in", "").partition(" ")[0]
    wanted = (
        {"Name": "name", "Values": [stand_in]} if stand_in else {"Name": "image-id", "Values": [instance["ImageId"]]}
    )
    images = ec2.describe_images(Filters=[wanted])["Images"]
    return _tags(images[0]).get("aws:haneul:user", "root") if images else "root"


def _ssh_command(settings: Settings, ec2: Any, instance: dict[str, Any]) -> list[str]:
    address = instance.get("PublicIpAddress")
    if not address:
        raise SettingsError(f"{instance['InstanceId']} is {instance['State']['Name']} and has no public address")
    who = _lifecycle.identity(settings)
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


def _port_open(address: str) -> bool:
    """Whether an SSH server greets there."""
    import socket

    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            connection.settimeout(5)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _last_line(ec2: Any, instance_id: str) -> str:
    text = ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", "")
    lines = [_printable(line) for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _printable(line: str) -> str:
    import re

    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b.", "", line)
    return "".join(character for character in line if character.isprintable()).strip()[:100]


def _wait_for_ssh(ec2: Any, instance_id: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The instance, once its SSH server greets. Tells phase, elapsed time and the last console line meanwhile."""
    began = time.monotonic()
    while True:
        found = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
        state = found["State"]["Name"]
        if state in ("stopping", "stopped", "shutting-down", "terminated"):
            why = found.get("StateReason", {}).get("Message", "no reason given")
            raise SettingsError(f"{instance_id} is {state}: {why}")
        if state == "running" and found.get("PublicIpAddress") and _port_open(found["PublicIpAddress"]):
            instance: dict[str, Any] = found
            return instance
        elapsed = time.monotonic() - began
        if elapsed > SSH_SECONDS:
            raise SettingsError(
                f"{instance_id} does not answer by SSH after {elapsed:.0f} s; `haneul console {instance_id}` shows what it says"
            )
        say(f"{instance_id} {state}, {elapsed:.0f} s: {_last_line(ec2, instance_id) or 'the firmware is starting'}")
        time.sleep(1.0)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def ssh(
    instance: Annotated[str, typer.Argument(help="Id, Name tag or address of an instance.")],
    command: Annotated[list[str] | None, typer.Argument(help="A command to run there.")] = None,
    region: Region = "",
    wait: Annotated[bool, typer.Option(help="Wait for an instance that is still booting.")] = True,
) -> None:
    """Log in to an instance, or run a command there; user, key and address are found by haneul.

    Examples: `haneul ssh i-0123…`, `haneul ssh web uname -a`
    """
    settings = config.load()
    _need_running(settings)
    ec2 = _client(settings, region)
    found = _find(ec2, instance)
    if wait and found["State"]["Name"] in ("pending", "running"):
        with _progress() as say:
            found = _wait_for_ssh(ec2, found["InstanceId"], say)
    arguments = [*_ssh_command(settings, ec2, found), *(command or [])]
    os.execvp(arguments[0], arguments)


@app.command()
def console(
    instance: Annotated[str, typer.Argument(help="Id, Name tag or address of an instance.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    attach: Annotated[bool, typer.Option("--attach", "-a", help="Type on the serial console; Ctrl-] leaves.")] = False,
    region: Region = "",
) -> None:
    """Print what an instance wrote on its serial console.

    Examples: `haneul console i-0123…`, `haneul console web --follow`, `haneul console web --attach`
    """
    settings = config.load()
    _need_running(settings)
    ec2 = _client(settings, region)
    instance_id = _find(ec2, instance)["InstanceId"]
    seen = ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", "")
    sys.stdout.write(seen)
    sys.stdout.flush()
    if attach:
        _attach(_lifecycle.console_socket(settings, instance_id))
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


# --- the lab ------------------------------------------------------------------------------------------


@app.command()
def compare(
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

    settings = config.load()
    try:
        asked = lab.request(generations, workloads, runs, output, image, again)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    if settings.drivers == "fake":
        raise SettingsError('fake drivers run no guest: there is nothing to compare (drivers = "auto" has real ones)')
    _need_running(settings)
    if (_status(settings) or {}).get("drivers") == "fake":
        raise SettingsError(
            "this haneul was started with fake drivers, which run no guest: there is nothing to compare"
        )
    ec2 = _client(settings)
    session = Session(
        ec2, lambda instance: _ssh_command(settings, ec2, instance), lambda one: _machine_ran(settings, one)
    )
    try:
        found = lab.run(
            asked, session, settings.image_directory, settings.data, lambda total: terminal.Watching(err, total)
        )
    except KeyboardInterrupt:
        err.print(
            f"interrupted; the same command goes on with what is missing in {output}", markup=False, highlight=False
        )
        raise
    if as_json:
        _print_json(lab.summary(found))
        return
    whole = costs.of(found)
    out.print(terminal.table(whole, found))
    for line in terminal.absent(whole, found):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(f"{output / lab.PAGE}, {lab.PICTURE}, results.json", markup=False, highlight=False, soft_wrap=True)


def _machine_ran(settings: Settings, instance: str) -> float | None:
    """When the process of an instance's machine ran, as the trace of its last boot says; None if that is not told yet."""
    boots = [one for one in _journals(settings)[0] if one.get("event") == "boot" and one["instance"] == instance]
    spans = {one["name"]: one["ended"] for one in boots[-1]["spans"]} if boots else {}
    return spans.get("machine")


# --- accounts -----------------------------------------------------------------------------------------


def _accounts(what: str, **arguments: str) -> Any:
    settings = config.load()
    _need_running(settings)
    status, answer = _ask_running(settings, "POST", f"/accounts/{what}", arguments)
    if status != 200:
        raise SettingsError(answer["error"])
    return answer


def _show_key(key: dict[str, str], as_json: bool) -> None:
    """The only time that a secret is told."""
    if as_json:
        _print_json(key)
        return
    err.print(f"account {key['account']} ({key['name']}); the secret is told this once", highlight=False)
    print(f"export AWS_ACCESS_KEY_ID={shlex.quote(key['access_key'])}")
    print(f"export AWS_SECRET_ACCESS_KEY={shlex.quote(key['secret'])}")


@account_app.command("add")
def account_add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    number: Annotated[str, typer.Option("--id", help="Twelve digits (default: chosen).")] = "",
    as_json: Json = False,
) -> None:
    """Make an account, a cloud of its own on the same servers, and its first access key.

    Examples: `haneul account add team-a`, `eval "$(haneul account add ci --id 111122223333)"`
    """
    _show_key(_accounts("add", name=name, id=number), as_json)


@account_app.command("list")
def account_list(as_json: Json = False) -> None:
    """List the accounts with the ids of their keys (secrets are never shown again)."""
    found = _accounts("list")
    if as_json:
        _print_json(found)
        return
    table = Table("account", "name", "access keys", "instances")
    for one in found:
        table.add_row(one["account"], one["name"], ", ".join(one["access_keys"]), str(one["instances"]))
    out.print(table)


@account_app.command("rotate")
def account_rotate(
    account: Annotated[str, typer.Argument(help="Id or name of the account.")], as_json: Json = False
) -> None:
    """Make a new access key for an account; all that it had are void at once.

    Example: `haneul account rotate team-a`
    """
    _show_key(_accounts("rotate", account=account), as_json)


@account_app.command("rm")
def account_rm(account: Annotated[str, typer.Argument(help="Id or name of the account.")]) -> None:
    """Remove an account with all that it has. Its instances have to be terminated before."""
    gone = _accounts("rm", account=account)
    out.print(f"account {gone['account']} is removed", highlight=False)


# --- images -------------------------------------------------------------------------------------------


class _progress:
    """A line that changes, on a terminal; nothing in a pipe."""

    def __init__(self, every: bool = False) -> None:
        self._terminal = err.is_terminal
        self._every = every
        self._status = err.status("") if self._terminal else None
        self._last = ""

    def __enter__(self) -> Callable[[str], None]:
        if self._status is not None:
            self._status.start()
        return self._say

    def _say(self, text: str) -> None:
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(text))
        elif self._every and text != self._last:
            print(f"  {text}", flush=True)
        self._last = text

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


@image_app.command("build")
def image_build(
    names: Annotated[list[str] | None, typer.Argument(help=f"Recipes: {', '.join(RECIPES)}.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Build it even if it is there.")] = False,
) -> None:
    """Build images from packages (root). Without a name: the default image.

    Examples: `haneul image build`, `haneul image build tiny`, `haneul image build debian-12 --again`
    """
    settings = config.load()
    store = _lifecycle.images(settings)
    for name in names or [DEFAULT]:
        if again:
            _need_unused(settings, name)
        with _progress(every=True) as say:
            built = store.build(name, say, again=again)
        if again:
            _sweep_templates(settings)
        out.print(f"{built.disk} is {built.image_id}", highlight=False)


@image_app.command("import")
def image_import(
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

    settings = config.load()
    if again:
        _need_unused(settings, name)
    wanted = Wanted(source, name, format, user, description, sha256, size_gib)
    bounds = Bounds(settings.import_max_gib << 30, settings.import_max_file_gib << 30)
    store = _lifecycle.images(settings)
    with _progress() as say:
        made = import_image(store, wanted, bounds, say, again=again, need_unused=lambda: _need_unused(settings, name))
    if again:
        _sweep_templates(settings)
    out.print(f"{made.disk} is {made.image_id}", highlight=False)


def _need_unused(settings: Settings, name: str) -> None:
    users = _lifecycle.image_users(settings, name)
    if users:
        raise SettingsError(f"volumes are made of {name}: {', '.join(users)}; terminate their instances first")


@image_app.command("list")
def image_list(as_json: Json = False) -> None:
    """List the built images and the recipes that are not built."""
    found = _lifecycle.images(config.load()).catalogue()
    if as_json:
        _print_json([asdict(one) | {"image_id": one.image_id} for one in found])
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
def image_rm(name: Annotated[str, typer.Argument(help="The image's name.")]) -> None:
    """Remove a built image, and its templates. Instances that were launched from it lose their base: terminate them first."""
    settings = config.load()
    _need_unused(settings, name)
    _lifecycle.images(settings).remove(name)
    _sweep_templates(settings)
    out.print(f"{name} is removed")


# --- templates ----------------------------------------------------------------------------------------

#: The first order after a start of the server waits for the probe of KVM.
_ORDER_SECONDS = 60.0


@image_app.command("warm")
def image_warm(
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
    settings = config.load()
    asked = list(dict.fromkeys(types or [DEFAULT_TYPE]))
    for one in asked:
        if why := template.why_not_type(one):
            raise typer.BadParameter(why, param_hint="--type")
    if not _lifecycle.images(settings).has(image):
        raise SettingsError(f"there is no image {image!r}; `haneul image list` shows them")
    running = _lifecycle.is_running(settings)
    if settings.warm == "off" and not running:
        raise SettingsError('warm = "off" in the settings: instances boot, and have no templates')
    made = []
    for one in asked:
        began = time.monotonic()
        with _progress(every=not as_json) as say:
            found = (
                _warm_running(settings, image, one, say)
                if running
                else _lifecycle.make_template(settings, image, one, say)
            )
        made.append(found)
        if not as_json and found.state != "failed":
            out.print(_told_of_template(found, time.monotonic() - began, running), highlight=False, soft_wrap=True)
    if running:  # a later one may have taken the place of an earlier one in memory
        known = {_shape_of(one): one for one in _templates_of_running(settings)}
        made = [one if one.state == "failed" else known.get(_shape_of(one), one) for one in made]
    if as_json:
        _print_json([asdict(one) for one in made])
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
                f"(warm_max_mib = {settings.warm_max_mib}): its next launch boots",
                markup=False, highlight=False,
            )  # fmt: skip
    if any(found.state == "failed" for found in made):
        raise typer.Exit(NO)


@image_app.command("templates")
def image_templates(as_json: Json = False) -> None:
    """List the templates: what instances go on from, what is being made, and what could not be made and why.

    `loaded` ones are in memory: the next launch goes on from them. `saved` ones are on disk, and loaded when they are wanted.

    Examples: `haneul image templates`, `haneul image templates --json | jq`
    """
    settings = config.load()
    running = _lifecycle.is_running(settings)
    found = _templates_of_running(settings) if running else _lifecycle.templates(settings)
    if as_json:
        _print_json([asdict(one) for one in found])
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


def _summary_of_templates(found: list[dict[str, Any]]) -> str:
    """One line of `haneul status`."""
    states = [one["state"] for one in found]
    told = ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(states))
    memory = sum(one["memory_bytes"] for one in found if one["state"] == "loaded")
    return f"templates: {told}; {_mib(memory)} of memory (`haneul image templates`)"


def _told_of_template(one: TemplateReport, seconds: float, running: bool) -> str:
    sizes = f"{_mib(one.memory_bytes)} of memory, {_mib(one.disk_bytes)} on disk"
    then = "the next launch goes on from it" if running else "`haneul up` loads it"
    return f"the template of {one.image} for {one.instance_type} is ready ({seconds:.1f} s; {sizes}): {then}"


def _ask_of_templates(settings: Settings, what: str, **arguments: str) -> Any:
    """Of the running haneul. Raises `SettingsError`."""
    try:
        status, answer = _ask_running(settings, "POST", f"/templates/{what}", arguments, _ORDER_SECONDS)
    except (ConnectionError, FileNotFoundError, ValueError):
        raise SettingsError(
            f"the haneul of {settings.data} does not answer: it starts or stops just now, or another command works there"
        ) from None
    if status != 200:
        raise SettingsError(answer["error"])
    return answer


def _templates_of_running(settings: Settings) -> list[TemplateReport]:
    return [TemplateReport(**one) for one in _ask_of_templates(settings, "list")]


def _warm_running(settings: Settings, image: str, instance_type: str, say: Say) -> TemplateReport:
    """The running haneul makes it, and has it in memory then. Interrupted here, it goes on with that."""
    ordered = TemplateReport(**_ask_of_templates(settings, "order", image=image, type=instance_type))
    while True:
        known = {_shape_of(one): one for one in _templates_of_running(settings)}
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


def _sweep_templates(settings: Settings) -> None:
    """An image is gone, or another one: its templates go, now rather than when haneul notices."""
    if settings.drivers == "fake":
        return
    if not _lifecycle.is_running(settings):
        _lifecycle.sweep_templates(settings)
        return
    try:
        _ask_running(settings, "POST", "/templates/sweep", {})
    except (OSError, ValueError):
        pass  # it does so by itself


# --- the main job -------------------------------------------------------------------------------------

_ASK_GUEST = """
token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
id=$(curl -sf -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/instance-id)
echo "kernel        $(uname -a)"
echo "instance id   $id (from its own metadata service)"
echo "cloud-init    $(cloud-init status --wait 2>/dev/null | tail -n 1 | sed 's/^status: //')"
machine=$(cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name 2>/dev/null | tr '\\n' ' ')
echo "virtualized   $(systemd-detect-virt 2>/dev/null || echo unknown), ${machine:-a machine without DMI data}"
"""


@app.command()
def quickstart(
    instance_type: Annotated[str, typer.Option("--type", help="The instance type to launch.")] = DEFAULT_TYPE,
    image: Annotated[str, typer.Option(help="The image to launch.")] = DEFAULT,
) -> None:
    """Build the image, start haneul, launch an instance, wait for SSH and ask the guest who it is.

    What is there already is used: repeated, this takes seconds. Example: `haneul quickstart`
    """
    settings = config.load()
    store = _lifecycle.images(settings)
    _step(f"image {image}")
    with _progress(every=True) as say:
        ami = store.build(image, say).image_id
    _step(f"haneul on {settings.endpoint}")
    if not _lifecycle.is_running(settings):
        _lifecycle.start_detached(settings)
    ec2 = _client(settings)
    found = _quickstart_instance(ec2, ami, instance_type)
    _step(f"SSH of {found['InstanceId']}")
    with _progress(every=True) as say:
        found = _wait_for_ssh(ec2, found["InstanceId"], say)
    _ask(settings, ec2, found)
    _how_to_go_on(found)


def _step(text: str) -> None:
    out.print(f"[bold]==>[/] {text}", highlight=False)


def _quickstart_instance(ec2: Any, ami: str, instance_type: str) -> dict[str, Any]:
    """The instance of an earlier quickstart, started if it is stopped, or a new one."""
    wanted = [
        {"Name": "tag:Name", "Values": [QUICKSTART]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
    ]
    answer = ec2.describe_instances(Filters=wanted)
    old: list[dict[str, Any]] = [one for reservation in answer["Reservations"] for one in reservation["Instances"]]
    if old:
        instance_id, state = old[0]["InstanceId"], old[0]["State"]["Name"]
        _step(f"instance {instance_id} of an earlier run ({state})")
        if state == "stopping":
            ec2.get_waiter("instance_stopped").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 1})
        if state in ("stopping", "stopped"):
            ec2.start_instances(InstanceIds=[instance_id])
        return old[0]
    group = _quickstart_group(ec2)
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": QUICKSTART}]}]
    answer = ec2.run_instances(
        ImageId=ami,
        InstanceType=instance_type,
        MinCount=1,
        MaxCount=1,
        SecurityGroupIds=[group],
        TagSpecifications=tags,
    )
    instance: dict[str, Any] = answer["Instances"][0]
    _step(f"instance {instance['InstanceId']} ({instance_type}), launched through the EC2 API")
    return instance


def _quickstart_group(ec2: Any) -> str:
    """A security group that lets SSH in, as on AWS: the default group lets in only its own members."""
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [QUICKSTART]}])["SecurityGroups"]
    if found:
        return str(found[0]["GroupId"])
    group = str(ec2.create_security_group(GroupName=QUICKSTART, Description="SSH for haneul quickstart")["GroupId"])
    ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0")
    return group


def _ask(settings: Settings, ec2: Any, found: dict[str, Any]) -> None:
    """What the guest itself says."""
    import subprocess

    command = [*_ssh_command(settings, ec2, found), "sh -s"]
    deadline = time.monotonic() + 120
    while True:
        answer = subprocess.run(command, input=_ASK_GUEST, capture_output=True, text=True, timeout=120, check=False)
        if answer.returncode == 0:
            break
        # sshd answers a little before cloud-init has put the key in place.
        if time.monotonic() > deadline:
            raise SettingsError(f"{found['InstanceId']} does not let haneul in: {answer.stderr.strip()}")
        time.sleep(0.5)
    generation = _tags(found).get("aws:haneul:virtualization", "HVM (KVM) with virtio devices")
    out.print(f"\n[bold]The guest says[/] ({found['PublicIpAddress']})", highlight=False)
    print(f"{answer.stdout.rstrip()}\ngeneration    {generation}")


def _how_to_go_on(found: dict[str, Any]) -> None:
    here = Path(sys.executable).parent
    print(
        f"""
Go on:
  eval "$({here}/haneul env)"        # points aws, boto3, Terraform, Ansible … at haneul
  haneul ssh {found["InstanceId"]}
  aws ec2 describe-instances --query 'Reservations[].Instances[].[InstanceId,State.Name,PublicIpAddress]' --output table
  aws ec2 run-instances --image-id {found["ImageId"]} --instance-type t3.micro
  haneul status
  haneul down --purge                # removes every trace"""
    )
