"""What a client meets. Every error has a message for people, and `hint`: what to do.

PairioError
├── NodeNotRunning          no node answers here
├── RequestRefused          the node says no (`code`, and the HTTP `status`)
│   ├── InvalidRequest      400, 413, 422: what was asked cannot be; also what this process sees
│   ├── NotAllowed          401, 403: no token, or not with this one
│   ├── NotFound            404: the node knows no such job, service, app or content
│   ├── Conflict            409: something is in the way
│   ├── NodeFailed          500: a bug of the node; its log says more
│   ├── NodeUnavailable     503: not now; too much is waiting, or nobody reachable has it
│   └── StorageFull         507: the quota or the disk of the node is full
├── NoSuchOutput            the job has none of that name; a KeyError, too
├── JobFailed               a job that was waited for did not complete (`job`)
│   ├── JobCanceled         it was withdrawn
│   └── JobBlocked          a job whose output it needs has failed
└── WaitTimeout             it takes longer than the caller wants to wait; the job goes on
"""

from typing import Any

__all__ = [
    "Conflict",
    "InvalidRequest",
    "JobBlocked",
    "JobCanceled",
    "JobFailed",
    "NoSuchOutput",
    "NodeFailed",
    "NodeNotRunning",
    "NodeUnavailable",
    "NotAllowed",
    "NotFound",
    "PairioError",
    "RequestRefused",
    "StorageFull",
    "WaitTimeout",
    "refusal_of",
]


class PairioError(Exception):
    """Base of all errors of the client. `hint` says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # a traceback shows it


class NodeNotRunning(PairioError):
    """No node answers at the address that was found. Nothing was sent, or it is not known."""

    #: Whether one took the call, and went before it answered: it may be back soon.
    was_there = False


class NoSuchOutput(PairioError, KeyError):
    """A job has no output of the name that was given."""

    __str__ = Exception.__str__


class RequestRefused(PairioError):
    """The node refused; nothing was changed. `status` is the HTTP status, `code` one word."""

    def __init__(
        self, message: str, hint: str | None = None, code: str = "invalid", status: int = 400
    ) -> None:
        super().__init__(message, hint)
        self.code = code
        self.status = status


class InvalidRequest(RequestRefused, ValueError):
    """What was asked cannot be; the message names the value and the hint what is allowed."""


class NotAllowed(RequestRefused):
    """No token, an unknown or expired one, or one that does not allow this."""


class NotFound(RequestRefused, LookupError):
    """The node knows no such thing."""


class Conflict(RequestRefused):
    """It is in the way of something that exists."""


class NodeFailed(RequestRefused):
    """The node failed to answer: a bug."""


class NodeUnavailable(RequestRefused):
    """Not now: overloaded, stopping, or nobody reachable has the content."""


class StorageFull(RequestRefused):
    """The quota or the disk of the node is full; nothing was stored."""


class JobFailed(PairioError):
    """A job that was waited for did not complete; `job` is the job, `status` what became of it."""

    def __init__(self, message: str, hint: str | None = None, job: Any = None) -> None:
        super().__init__(message, hint)
        self.job = job
        self.status: str | None = getattr(job, "status", None)


class JobCanceled(JobFailed):
    """The job was withdrawn."""


class JobBlocked(JobFailed):
    """A job whose output this one needs has failed; when that one completes, this one goes on."""


class WaitTimeout(PairioError, TimeoutError):
    """It takes longer than the caller wants to wait; the job goes on."""


_BY_STATUS: dict[int, type[RequestRefused]] = {
    400: InvalidRequest,
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    422: InvalidRequest,
    500: NodeFailed,
    503: NodeUnavailable,
    507: StorageFull,
}


def refusal_of(message: str, hint: str | None, code: str, status: int) -> RequestRefused:
    """Return the error for what a node answered."""
    return _BY_STATUS.get(status, RequestRefused)(message, hint, code, status)
