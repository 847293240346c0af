"""A haneul with fake drivers, and real clients for it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from haneul import identity
from haneul.app import control_plane as cloud
from haneul.app.compose import fake_drivers
from haneul.config import Settings
from haneul.drivers.fake import World
from haneul.store import tables


@dataclass
class FakeCloud:
    """A running fake haneul. `world` is what its drivers have made."""

    running: cloud.Running
    world: World
    identity: identity.Identity
    stop: Callable[[], None]

    @property
    def endpoint(self) -> str:
        return self.running.settings.endpoint

    def client(self, service: str = "ec2", region: str = "us-east-1", **options: Any) -> Any:
        access_key, secret = self.identity.read_credentials()
        options = {"aws_access_key_id": access_key, "aws_secret_access_key": secret} | options
        config = Config(retries={"max_attempts": 1, "mode": "standard"}, parameter_validation=False)
        return boto3.client(service, region_name=region, endpoint_url=self.endpoint, config=config, **options)

    def put_image(self, image_id: str, account: str = tables.EVERYONE, **values: Any) -> None:
        """An image as an account would have registered it; without one it is of the catalogue."""
        everyone = account == tables.EVERYONE
        row = {"region": tables.EVERYONE if everyone else "us-east-1", "public": everyone, "created": 1.0, "disk": ""}
        with self.running.store.write() as tx:
            tx.insert(tables.images, id=image_id, account=account, **(row | {"block_devices": [], "more": {}} | values))

    def environment(self) -> dict[str, str]:
        access_key, secret = self.identity.read_credentials()
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.identity.directory),
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_PAGER": "",
        }


@pytest.fixture(scope="session")
def start_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., FakeCloud]]:
    """Start fake haneuls with settings of one's own; all are stopped at the end."""
    stops: list[Callable[[], None]] = []

    def start(data: Path | None = None, **settings: Any) -> FakeCloud:
        found, stop = _start(data or tmp_path_factory.mktemp("haneul"), settings)
        stops.append(stop)
        return found

    yield start
    for stop in stops:
        stop()


def _start(data: Path, given: dict[str, Any]) -> tuple[FakeCloud, Callable[[], None]]:
    who = identity.ensure(data)
    settings = Settings(**{"data": data, "drivers": "fake", "port": 0, **given})
    ready: Future[cloud.Running] = Future()
    world = World(data / "fake-world.db")
    stop_event: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        event = asyncio.Event()
        stop_event.append((asyncio.get_running_loop(), event))
        async with cloud.start(settings, who, lambda wake: fake_drivers(world), list) as running:
            ready.set_result(running)
            await event.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name="haneul")
    thread.start()
    running = ready.result(20)

    def stop() -> None:
        loop, event = stop_event[0]
        if thread.is_alive():
            loop.call_soon_threadsafe(event.set)
            thread.join(20)

    return FakeCloud(running, world, who, stop), stop


@pytest.fixture(scope="session")
def fake(start_cloud: Callable[..., FakeCloud]) -> FakeCloud:
    return start_cloud()


@pytest.fixture
def ec2(fake: FakeCloud) -> Any:
    return fake.client()
