"""A busy day, compressed: what is made and ended leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import churn


@pytest.mark.slow
def test_a_day_leaves_nothing_behind(record_tally: Callable[[str], None]) -> None:
    """Rows, descriptors and threads end as they began, and memory stays within a generous bound; no time is asserted."""
    plan = churn.QUICK
    result, sampler = churn.run(plan, print)
    record_tally(
        f"a day of churn: {result['launched']} instances launched and ended, {result['connections_held']} connections held, "
        f"rows left {result['rows_left_at_the_end']}, growth of PSS {result['growth_per_hour_of_the_day']['pss_mib']} MiB an hour"
    )
    series = sampler.series
    assert result["rows_left_at_the_end"] == {}
    assert result["launched"] > plan.population, "the users have worked"
    assert result["most"]["rows client_tokens"] < result["launched"], "old tokens are forgotten meanwhile"
    # Connections are held, and SQLite's, the agent's and the clients' are a few more.
    assert max(series["descriptors"]) < plan.connections + 120
    assert max(series["threads"]) < 40
    assert max(series["wal_mib"]) < 64 and max(series["logs_mib"]) < 16
    # A cache of 8 MiB and what a thousand instances need at once; a leak of 10 KiB a request would be 30 MiB.
    assert series["pss_mib"][-1] - series["pss_mib"][len(series["pss_mib"]) // 3] < 40
