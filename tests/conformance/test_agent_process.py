"""An agent in a process of its own: what passes between it and the control plane is JSON, and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from haneul import identity
from haneul.agent.link import LINE_LIMIT, serve_agent
from haneul.config import Settings
from haneul.reconcile.assign import Signer
from haneul.reconcile.control import Control
from haneul.services import ec2  # noqa: F401 - fills the table of operations
from haneul.services.context import Caller
from haneul.services.dispatch import Cloud
from haneul.store.database import Store

CALLER = Caller("000000000000", "us-east-1", "")


class NoAsk:
    def console_output(self, server_id: str, instance_id: str, deadline: float) -> bytes:
        raise NotImplementedError

    screenshot = console_output


def test_an_agent_of_its_own_carries_out_an_assignment(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, drivers="fake", public_pool="198.18.0.0/23")
    who = identity.ensure(tmp_path)
    store = Store.embedded(tmp_path / "haneul.db")
    store.migrate()
    control = Control(store, settings, Signer(who.sign, who.ssh_public), time.time, list)
    cloud = Cloud(store, settings, NoAsk(), time.time)
    socket = tmp_path / "agent.sock"

    def state(one: str) -> str:
        found = cloud.call("ec2", "DescribeInstances", CALLER, {"InstanceIds": [one]})
        return str(found["Reservations"][0]["Instances"][0]["State"]["Name"])

    async def until(ask: Any) -> None:
        async with asyncio.timeout(30):
            while not ask():
                await asyncio.sleep(0.02)

    async def main() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve_agent(control, "server-1", reader, writer)

        server = await asyncio.start_unix_server(connected, str(socket), limit=LINE_LIMIT)
        environment = os.environ | {"HANEUL_DATA": str(tmp_path), "HANEUL_DRIVERS": "fake"}
        agent = subprocess.Popen([sys.executable, "-m", "haneul", "agent", str(socket)], env=environment)
        try:
            with_room = lambda: control.assignment("server-1") is not None and _servers(store)  # noqa: E731
            await until(with_room)
            request = {"ImageId": "ami-0123456789abcdef0", "MinCount": 1, "MaxCount": 1}
            answer = await asyncio.to_thread(cloud.call, "ec2", "RunInstances", CALLER, request)
            one = answer["Instances"][0]["InstanceId"]
            await until(lambda: state(one) == "running")
            await asyncio.to_thread(cloud.call, "ec2", "TerminateInstances", CALLER, {"InstanceIds": [one]})
            await until(lambda: state(one) == "terminated")
        finally:
            agent.kill()
            agent.wait()
            server.close()

    asyncio.run(main())
    store.close()


def _servers(store: Store) -> bool:
    from haneul.store import tables

    with store.read() as tx:
        return bool(tx.select(tables.servers))
