"""Accounts and their access keys."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from rich.table import Table

from haneul.cli.context import here
from haneul.cli.output import Json, err, out, print_json
from haneul.cli.running import order

account_app = typer.Typer()


def _show_key(key: dict[str, str], as_json: bool) -> None:
    """The only time that a secret is told."""
    if as_json:
        print_json(key)
        return
    err.print(f"account {key['account']} ({key['name']}); the secret is told this once", highlight=False)
    print(f"export AWS_ACCESS_KEY_ID={shlex.quote(key['access_key'])}")
    print(f"export AWS_SECRET_ACCESS_KEY={shlex.quote(key['secret'])}")


@account_app.command("add")
def account_add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it.")],
    number: Annotated[str, typer.Option("--id", help="Twelve digits (default: chosen).")] = "",
    as_json: Json = False,
) -> None:
    """Make an account, a cloud of its own on the same servers, and its first access key.

    Examples: `haneul account add team-a`, `eval "$(haneul account add ci --id 111122223333)"`
    """
    _show_key(order(here(ctx), "/accounts/add", name=name, id=number), as_json)


@account_app.command("list")
def account_list(ctx: typer.Context, as_json: Json = False) -> None:
    """List the accounts with the ids of their keys (secrets are never shown again)."""
    found = order(here(ctx), "/accounts/list")
    if as_json:
        print_json(found)
        return
    table = Table("account", "name", "access keys", "instances")
    for one in found:
        table.add_row(one["account"], one["name"], ", ".join(one["access_keys"]), str(one["instances"]))
    out.print(table)


@account_app.command("rotate")
def account_rotate(
    ctx: typer.Context,
    account: Annotated[str, typer.Argument(help="Id or name of the account.")],
    as_json: Json = False,
) -> None:
    """Make a new access key for an account; all that it had are void at once.

    Example: `haneul account rotate team-a`
    """
    _show_key(order(here(ctx), "/accounts/rotate", account=account), as_json)


@account_app.command("rm")
def account_rm(ctx: typer.Context, account: Annotated[str, typer.Argument(help="Id or name of the account.")]) -> None:
    """Remove an account with all that it has. Its instances have to be terminated before."""
    gone = order(here(ctx), "/accounts/rm", account=account)
    out.print(f"account {gone['account']} is removed", highlight=False)
