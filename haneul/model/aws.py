"""AWS's own description of its services, from the installed botocore. It is loaded once: it is large."""

from __future__ import annotations

from functools import cache

import botocore.session
from botocore.model import ServiceModel


@cache
def session() -> botocore.session.Session:
    return botocore.session.get_session()


@cache
def service_model(service: str) -> ServiceModel:
    model: ServiceModel = session().get_service_model(service)
    return model
