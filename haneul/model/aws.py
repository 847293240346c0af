"""AWS's own description of its services, from the installed botocore. It is loaded once: it is large."""

from __future__ import annotations

from functools import cache

import botocore.session
from botocore.model import ServiceModel


@cache
def session() -> botocore.session.Session:
    found: botocore.session.Session = botocore.session.get_session()
    return found


@cache
def service_model(service: str) -> ServiceModel:
    model: ServiceModel = session().get_service_model(service)
    return model
