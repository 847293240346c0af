"""Questions to a server, from the operations' threads (`services.context.Ask`)."""

from __future__ import annotations

import asyncio
from typing import Any

from haneul.agent.agent import Drivers
from haneul.drivers.interface import Console, DriverError, Screenshotter
from haneul.errors import CloudError


class LocalAsk:
    """Questions to the agent's drivers, from the operations' threads to the agent's loop."""

    def __init__(self, drivers: Drivers, loop: asyncio.AbstractEventLoop) -> None:
        self._machines = drivers.machines
        self._loop = loop

    def console_output(self, server_id: str, instance_id: str, deadline: float) -> bytes:
        if not isinstance(self._machines, Console):
            raise CloudError("UnsupportedOperation", "This server's machines have no console.")
        return self._answer(self._machines.console_output(instance_id), deadline)

    def screenshot(self, server_id: str, instance_id: str, deadline: float) -> bytes:
        if not isinstance(self._machines, Screenshotter):
            raise CloudError("UnsupportedOperation", "This server's machines have no display.")
        return self._answer(self._machines.screenshot(instance_id), deadline)

    def _answer(self, question: Any, deadline: float) -> bytes:
        future = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return bytes(future.result(deadline))
        except TimeoutError:
            future.cancel()
            raise CloudError("Unavailable", "The instance's server did not answer in time.") from None
        except DriverError as error:
            raise CloudError("Unavailable", f"The instance's server could not answer: {error}") from None
