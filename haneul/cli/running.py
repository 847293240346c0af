"""Asking the haneul that runs: its control socket, and its API."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from haneul.cli.context import Cli
from haneul.errors import SettingsError

Region = Annotated[str, typer.Option(help="The region to look in (default: the setting `region`).")]


def ask_running(cli: Cli, method: str, path: str, body: Any = None, timeout: float = 30) -> tuple[int, Any]:
    """(HTTP status, answer) of the running haneul's control socket. Raises OSError or ValueError."""
    import http.client
    import socket

    connection = http.client.HTTPConnection("haneul", timeout=timeout)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout)
    try:
        connection.sock.connect(str(cli.lifecycle.control(cli.settings)))
        connection.request(method, path, json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def status_(cli: Cli) -> dict[str, Any] | None:
    """What the running haneul says of itself, or None."""
    if not cli.lifecycle.is_running(cli.settings):
        return None
    try:
        found: dict[str, Any] = ask_running(cli, "GET", "/status")[1]
        return found
    except (OSError, ValueError):
        return None


def client(cli: Cli, region: str = "") -> Any:
    import boto3
    from botocore.config import Config

    access_key, secret = cli.lifecycle.identity(cli.settings).read_credentials()
    return boto3.client(
        "ec2",
        endpoint_url=cli.settings.endpoint,
        region_name=region or cli.settings.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        config=Config(retries={"max_attempts": 2}, connect_timeout=5),
    )


def order(cli: Cli, path: str, timeout: float = 30, **arguments: str) -> Any:
    """The running haneul's answer to an order. Raises `SettingsError` with what it says, or if it does not answer."""
    need_running(cli)
    try:
        status, answer = ask_running(cli, "POST", path, arguments, timeout)
    except (ConnectionError, FileNotFoundError, ValueError):
        raise SettingsError(
            f"the haneul of {cli.settings.data} does not answer: it starts or stops just now, or another command works there"
        ) from None
    if status != 200:
        raise SettingsError(answer["error"])
    return answer


def need_running(cli: Cli) -> None:
    if not cli.lifecycle.is_running(cli.settings):
        raise SettingsError("haneul is not running; `haneul up --detach` starts it")
