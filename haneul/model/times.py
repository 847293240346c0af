"""Times as EC2 writes them."""

from __future__ import annotations

import datetime as dt


def moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def gmt(seconds: float) -> str:
    """The form of the times in `StateTransitionReason`."""
    return moment(seconds).strftime("%Y-%m-%d %H:%M:%S GMT")
