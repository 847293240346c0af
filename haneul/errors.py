"""Errors that a client of the API sees, with EC2's own codes.

Codes and message forms: AWS EC2 API Reference, "Error codes for the Amazon EC2 API".
Anything that is not a `CloudError` is a fault of haneul's and answers `InternalError`.
"""

from __future__ import annotations

from collections.abc import Iterable

_STATUS = {
    "AuthFailure": 401,
    "InvalidClientTokenId": 403,
    "NoSuchEntity": 404,
    "SignatureDoesNotMatch": 403,
    "UnauthorizedOperation": 403,
    "DryRunOperation": 412,
    "InsufficientInstanceCapacity": 500,
    "InternalError": 500,
    "RequestLimitExceeded": 503,
    "Unavailable": 503,
}


class CloudError(Exception):
    """A refusal with EC2's code; `status` is the HTTP status that AWS sends with that code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        return _STATUS.get(self.code, 400)


class WorldError(Exception):
    """The world refused: a program, a disk, the network. The text says what failed, why, and what to do if that is known."""


class SettingsError(Exception):
    """A setting or a precondition of this machine is wrong; the text says what to do."""


def not_found(code: str, what: str, ids: Iterable[str]) -> CloudError:
    """`The instance ID 'i-0abc' does not exist`, in EC2's singular or plural form."""
    names = list(ids)
    if len(names) == 1:
        return CloudError(code, f"The {what} '{names[0]}' does not exist")
    return CloudError(code, f"The {what}s '{', '.join(names)}' do not exist")


def malformed(code: str, value: str) -> CloudError:
    return CloudError(code, f'Invalid id: "{value}"')


def missing(parameter: str) -> CloudError:
    return CloudError("MissingParameter", f"The request must contain the parameter {parameter}")


def invalid(value: object, parameter: str, why: str = "") -> CloudError:
    text = f"Value ({value}) for parameter {parameter} is invalid."
    return CloudError("InvalidParameterValue", f"{text} {why}".rstrip())


def combination(message: str) -> CloudError:
    return CloudError("InvalidParameterCombination", message)


def unsupported(message: str) -> CloudError:
    return CloudError("UnsupportedOperation", message)
