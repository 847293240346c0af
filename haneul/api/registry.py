"""Which service a request means, as botocore's models of the services say it: nothing about them is written down here.

A credential scope names a service by its signing name, which several have (`elasticloadbalancing` is elb and elbv2), and not
always botocore's own name (`monitoring` is cloudwatch): the version of a query, or the prefix of a JSON target, tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from haneul.model.aws import service_model


@dataclass(frozen=True)
class Registry:
    """The services of these names (botocore's)."""

    names: tuple[str, ...]
    _by_signing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _by_version: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _by_target: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(names: Iterable[str]) -> Registry:
        made = Registry(tuple(sorted(names)))
        for name in made.names:
            model = service_model(name)
            for signing in {model.signing_name, name}:
                made._by_signing[signing] = (*made._by_signing.get(signing, ()), name)
            if model.protocol in ("ec2", "query"):
                made._by_version[model.api_version] = (*made._by_version.get(model.api_version, ()), name)
            if target := model.metadata.get("targetPrefix"):
                made._by_target[target] = name
        return made

    def find(self, signing: str, version: str, target: str) -> str | None:
        """The service, None if it is none of these. `signing` is empty for a request without credentials.

        `version` is a query's, `target` the prefix of a JSON request's target; both are empty where there is none.
        """
        if target:
            named = self._by_target.get(target)
            return named if named is not None and signing in ("", *self._signed_as(named)) else None
        candidates = self._by_signing.get(signing, ()) if signing else self._by_version.get(version, ())
        exact = [name for name in candidates if service_model(name).api_version == version]
        return next(iter([*exact, *candidates]), None)

    def _signed_as(self, name: str) -> set[str]:
        return {service_model(name).signing_name, name}
