"""The only place that puts concrete parts together."""

from __future__ import annotations

from haneul.agent.agent import Drivers
from haneul.drivers.fake import FakeDisks, FakeMachines, FakeMetadata, FakeNetworks, FakeServer, World


def fake_drivers(world: World) -> Drivers:
    return Drivers(FakeMachines(world), FakeDisks(world), FakeNetworks(world), FakeMetadata(world), FakeServer())
