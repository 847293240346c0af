"""The command line: every command, and what its errors become.

Exit codes: 0; 1 "no" (not running, not healthy); 2 a mistake in the call; 3 refused by this machine's state, with what to do.
"""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer

from haneul import __version__
from haneul.cli import accounts, compare, events, images, instances, life, quickstart, templates, unclaimed
from haneul.cli.context import Cli
from haneul.cli.lifecycle import Lifecycle
from haneul.cli.output import NO, REFUSED, WRONG, err
from haneul.errors import CloudError, SettingsError, WorldError

app = typer.Typer(
    help="haneul: the EC2 API that boots a kernel.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
image_app = typer.Typer(help="Build, import, list, warm and remove images.", no_args_is_help=True)
account_app = typer.Typer(help="Accounts and their access keys.", no_args_is_help=True)
for _topic in (life, events, instances, compare, quickstart):
    app.registered_commands += _topic.app.registered_commands
for _topic in (images, templates):
    image_app.registered_commands += _topic.image_app.registered_commands
account_app.registered_commands += accounts.account_app.registered_commands
app.add_typer(image_app, name="image")
app.add_typer(account_app, name="account")
unclaimed_app = typer.Typer(help="What is here and the store does not know: list it, remove it.", no_args_is_help=True)
unclaimed_app.registered_commands += unclaimed.unclaimed_app.registered_commands
app.add_typer(unclaimed_app, name="unclaimed")


def run(lifecycle: Lifecycle) -> int:
    """The exit code. Errors are one line that says what failed, why, and what to do."""
    try:
        code = app(standalone_mode=False, obj=Cli(lifecycle))
    except typer.Exit as ending:
        return ending.exit_code
    except typer.Abort:
        return WRONG
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command line itself
            error.show()
            return WRONG
        told = _refused_by_the_cloud(error)
        if told:
            _tell(told)
            return NO
        told = refused_by_the_world(error)
        if not told:
            raise
        _tell(told)
        return REFUSED
    return code if isinstance(code, int) else 0


def _tell(text: str) -> None:
    err.print(f"haneul: {text}", markup=False, highlight=False, soft_wrap=True)


def _refused_by_the_cloud(error: Exception) -> str:
    """An answer of the API that is an error, in words; empty if it is none."""
    said = getattr(error, "response", None) or {}
    found = said.get("Error", {}) if isinstance(said, dict) else {}
    return f"{found['Code']}: {found['Message']}" if found else ""


def refused_by_the_world(error: Exception) -> str:
    """What kept a command from its work, why, and what to do; empty for what is haneul's own fault."""
    if isinstance(error, SettingsError | WorldError):
        return str(error)
    if isinstance(error, CloudError):
        return error.message
    if isinstance(error, PermissionError):
        return f"{error.filename or error}: permission denied; this needs root: use sudo"
    if isinstance(error, FileNotFoundError) and error.filename and "/" not in str(error.filename):
        return f"the program {error.filename} is not installed: `make setup` installs what haneul needs"
    if isinstance(error, OSError) and error.errno == 28:
        return f"{error.filename or 'a file'}: the disk is full; make room and repeat the command"
    if isinstance(error, OSError):
        return f"{error.filename or type(error).__name__}: {error.strerror or error}"
    if isinstance(error, subprocess.SubprocessError):
        return _of_a_program(error)
    name = f"{type(error).__module__}.{type(error).__name__}"
    if name.startswith("botocore.exceptions."):
        return f"haneul's API does not answer ({error}); `haneul status` and `haneul logs` say more"
    if name.startswith("sqlalchemy.exc."):
        return f"the database cannot work: {getattr(error, 'orig', None) or error}; is the setting `database` right?"
    return ""


def _of_a_program(error: subprocess.SubprocessError) -> str:
    command = getattr(error, "cmd", "a program")
    words = command if isinstance(command, str) else " ".join(map(str, command))
    if isinstance(error, subprocess.TimeoutExpired):
        return (
            f"{words[:200]} did not end within {error.timeout:.0f} s; repeat the command when the server is less busy"
        )
    said = getattr(error, "stderr", b"") or getattr(error, "output", b"") or b""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    last = (text.strip().splitlines() or ["it said nothing"])[-1]
    return f"{words[:200]} failed ({getattr(error, 'returncode', '?')}): {last[:500]}"


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
