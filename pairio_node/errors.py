"""Errors for people: what happened, the value, what is allowed; `hint` says what to do.

UserError (400)
├── NotFoundError (404)
├── ForbiddenError (403)
├── ConflictError (409)
├── UnavailableError (503)
└── StorageFullError (507)
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pairio_protocol.errors import DefinitionError

__all__ = [
    "ConflictError",
    "ForbiddenError",
    "NotFoundError",
    "StorageFullError",
    "UnavailableError",
    "UserError",
    "as_user_errors",
]


class UserError(Exception):
    """Something that the user can mend. Nothing was done unless the message says so."""

    default_code = "invalid"
    default_status = 400

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        http_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code
        self.http_status = http_status or self.default_status


class NotFoundError(UserError):
    """There is no such thing here."""

    default_code, default_status = "not_found", 404


class ForbiddenError(UserError):
    """The caller may not do this."""

    default_code, default_status = "forbidden", 403


class ConflictError(UserError):
    """It is in the way of something that exists."""

    default_code, default_status = "conflict", 409


class UnavailableError(UserError):
    """Not now: overloaded, stopping, or nobody reachable has it."""

    default_code, default_status = "unavailable", 503


class StorageFullError(UserError):
    """The quota or the disk is full; nothing was stored."""

    default_code, default_status = "storage_full", 507


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Turn what the protocol says of a definition that cannot be into a `UserError`."""
    try:
        yield
    except DefinitionError as error:
        raise UserError(str(error), hint=error.hint) from None
