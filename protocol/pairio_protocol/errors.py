"""What can go wrong in the protocol, and who is to blame.

ProtocolError
├── DecodeError       bytes from outside are bad: the sender's fault, counted, never fatal
└── DefinitionError   the local caller asks for something impossible: says what and what to do
"""

__all__ = ["DecodeError", "DefinitionError", "ProtocolError"]


class ProtocolError(Exception):
    """Base of everything raised here. No state has changed when one is raised."""


class DecodeError(ProtocolError):
    """Bytes from outside that break the specification. Nothing of them was taken."""


class DefinitionError(ProtocolError):
    """A job, app or service that cannot be as asked. `hint` says what to do instead."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
