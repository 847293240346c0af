"""Which guests may begin with their background, and when (drivers/pace.py)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from haneul.drivers.machines import pace
from haneul.drivers.machines.pace import LOGIN_SECONDS, PATIENCE, Held, Pace, chosen, idle_ticks

NOW = 1000.0


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.socket() as one:
        yield one


def held(port: socket.socket, *ages: float, urgent: bool = False) -> list[Held]:
    return [Held(port, urgent, NOW - age) for age in ages]


def test_who_waits_to_log_in_has_the_first_seconds(port: socket.socket) -> None:
    young, old = held(port, LOGIN_SECONDS - 0.1, LOGIN_SECONDS)
    assert chosen([young, old], NOW, 8.0, 0, NOW) == [old]


def test_whom_nobody_can_log_in_to_before_comes_first_and_at_once(port: socket.socket) -> None:
    (old,), (new,) = held(port, 60.0), held(port, 0.0, urgent=True)
    assert chosen([old, new], NOW, 1.0, 0, NOW) == [new]
    assert chosen([old, new], NOW, 2.0, 0, NOW) == [new, old]


@pytest.mark.parametrize(("idle", "count"), [(0.0, 0), (0.4, 0), (0.5, 1), (1.4, 1), (1.9, 2), (64.0, 3)])
def test_as_many_begin_as_there_are_processors_for_in_their_order(port: socket.socket, idle: float, count: int) -> None:
    some = held(port, 10.0, 30.0, 20.0)
    assert chosen(some, NOW, idle, 0, NOW) == [some[1], some[2], some[0]][:count]


def test_nobody_begins_while_others_are_launched_but_nobody_waits_for_ever(port: socket.socket) -> None:
    some = held(port, 30.0, 30.0)
    assert chosen(some, NOW, 8.0, 1, NOW - PATIENCE + 0.1) == []
    assert chosen(some, NOW, 0.0, 1, NOW - PATIENCE) == some[:1]
    assert chosen(held(port, 1.0), NOW, 8.0, 0, NOW - PATIENCE) == []


def test_what_works_at_a_low_priority_counts_as_idle() -> None:
    assert idle_ticks("cpu  100 20 3 4000 500 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n") == 4520


def test_a_guest_hears_that_it_may_begin_or_is_forgotten_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TICK", 0.001)
    monkeypatch.setattr(pace, "LOGIN_SECONDS", 0.0)
    monkeypatch.setattr(pace, "_idle_ticks", lambda: 0)

    async def scene() -> None:
        with ExitStack() as stack:
            here, guest = socket.socketpair()
            other, ended = socket.socketpair()
            stack.enter_context(guest)
            stack.enter_context(ended)
            one = Pace(processors=1)
            async with one.launch():
                one.hold(here, urgent=False)
                one.hold(other, urgent=False)
                ended.close()
                async with asyncio.timeout(10):
                    while one.waiting == 2:
                        await asyncio.sleep(0.001)
                assert (here.fileno() >= 0, other.fileno()) == (True, -1)
                monkeypatch.setattr(pace, "PATIENCE", 0.0)
                async with asyncio.timeout(10):
                    while one.waiting:
                        await asyncio.sleep(0.001)
            assert guest.recv(1) == b""

    asyncio.run(scene())


def test_a_guest_may_begin_when_haneul_ends() -> None:
    here, guest = socket.socketpair()

    async def scene() -> None:
        Pace(processors=1).hold(here, urgent=False)
        await asyncio.sleep(0)

    with guest:
        asyncio.run(scene())
        assert guest.recv(1) == b""


def test_only_a_few_are_launched_at_once() -> None:
    async def scene() -> int:
        one, now, most = Pace(processors=1), 0, 0

        async def launch() -> None:
            nonlocal now, most
            async with one.launch():
                now += 1
                most = max(most, now)
                await asyncio.sleep(0)
                now -= 1

        await asyncio.gather(*(launch() for _ in range(9)))
        return most

    assert asyncio.run(scene()) == 2
