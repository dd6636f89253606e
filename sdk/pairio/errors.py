"""What a client meets.

PairioError
├── NodeNotRunning      no node answers here
├── RequestRefused      the node says no: what, and what to do (`hint`, `code`, `status`)
└── JobFailed           raised by waiting with `raise_on_failure`
"""

__all__ = ["JobFailed", "NodeNotRunning", "PairioError", "RequestRefused"]


class PairioError(Exception):
    """Base of all errors of the client. `hint` says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class NodeNotRunning(PairioError):
    """No node answers at the address that was found. Nothing was sent, or it is not known."""


class RequestRefused(PairioError):
    """The node refused; nothing was changed."""

    def __init__(self, message: str, hint: str | None, code: str, status: int) -> None:
        super().__init__(message, hint)
        self.code = code
        self.status = status


class JobFailed(PairioError):
    """The job ended without a result."""
