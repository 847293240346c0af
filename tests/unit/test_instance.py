"""The state of an instance is a total function of what is desired and what was observed."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from haneul.model.instance import STATE_CODES, Desired, Observed, ended_by_itself, state, why_ended

POWERS = ("running", "stopped", "terminated")
SEEN = ("absent", "starting", "running", "stopping", "off")


@given(
    st.sampled_from(POWERS),
    st.integers(1, 5),
    st.integers(1, 5),
    st.one_of(st.none(), st.tuples(st.sampled_from(SEEN), st.integers(0, 6))),
)
def test_it_is_total(power: str, boots: int, started: int, seen: tuple[str, int] | None) -> None:
    desired = Desired(power, max(boots, started), started)  # type: ignore[arg-type]
    observed = Observed(*seen) if seen else None  # type: ignore[arg-type]
    assert state(desired, observed) in STATE_CODES


def test_the_table() -> None:
    run, stop, end = Desired("running"), Desired("stopped"), Desired("terminated")
    cases = [
        (run, None, "pending"),
        (run, Observed("starting", 0), "pending"),
        (run, Observed("running", 1), "running"),
        (run, Observed("off", 1, "crash"), "stopped"),
        (run, Observed("off", 0), "pending"),
        (Desired("running", 2, 1), Observed("running", 1), "running"),  # an API reboot changes nothing visible
        (Desired("running", 2, 1), Observed("off", 1, "ordered"), "pending"),
        (Desired("running", 2, 2), Observed("off", 1, "ordered"), "pending"),  # started again
        (stop, Observed("running", 1), "stopping"),
        (stop, Observed("stopping", 1), "stopping"),
        (stop, Observed("off", 1), "stopped"),
        (stop, Observed("absent"), "stopped"),
        (end, None, "shutting-down"),
        (end, Observed("running", 1), "shutting-down"),
        (end, Observed("off", 1), "shutting-down"),
        (end, Observed("absent"), "terminated"),
    ]
    for desired, observed, wanted in cases:
        assert state(desired, observed) == wanted, (desired, observed)


def test_only_a_machine_that_should_run_ends_by_itself() -> None:
    for power, seen in itertools.product(POWERS, SEEN):
        found = ended_by_itself(Desired(power), Observed(seen, 1))  # type: ignore[arg-type]
        assert found == (power == "running" and seen == "off")


def test_reasons_have_ec2s_codes() -> None:
    assert why_ended(Observed("off", 1, "guest-shutdown"), "now").code == "Client.InstanceInitiatedShutdown"
    crash = why_ended(Observed("off", 1, "crash", "signal 9"), "now")
    assert crash.code == "Server.InternalError" and "signal 9" in crash.message
