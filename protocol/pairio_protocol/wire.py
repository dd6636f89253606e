"""Frozen dataclasses on the wire: one declaration gives encoding, decoding and checking.

`@wire("kind")` registers a dataclass in a `Registry`. Encoded is `[kind, field, field, ...]` in
the order of declaration; decoding checks every field against its annotation and length, so that
a handler never sees a value of the wrong type. Unknown kinds raise `UnknownKind`: the caller
decides whether to keep such a thing.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from pairio_protocol.codec import pack, unpack
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import FRAME_SIZE_BYTES_MAX, TEXT_LENGTH_MAX

__all__ = ["Registry", "UnknownKind"]

T = TypeVar("T")


class UnknownKind(DecodeError):
    """A well-formed thing of a kind that this version does not know."""


class Registry:
    """The closed set of kinds that may stand in one place of the protocol."""

    def __init__(self) -> None:
        self._by_kind: dict[str, tuple[type[Any], list[tuple[str, Any]]]] = {}
        self._kinds: dict[type[Any], str] = {}

    def wire(self, kind: str) -> Callable[[type[T]], type[T]]:
        """Register a dataclass under `kind` (a class decorator)."""

        def register(cls: type[T]) -> type[T]:
            hints = typing.get_type_hints(cls)
            fields = [(f.name, hints[f.name]) for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
            self._by_kind[kind] = (cls, fields)
            self._kinds[cls] = kind
            return cls

        return register

    def kind_of(self, value: object) -> str:
        """Return the kind under which the value's class is registered."""
        return self._kinds[type(value)]

    def kinds(self) -> list[str]:
        """Return every kind, sorted."""
        return sorted(self._by_kind)

    def to_plain(self, value: Any) -> list[Any]:
        """Return `[kind, fields...]` of a registered value."""
        kind = self._kinds[type(value)]
        return [kind, *(_plain(getattr(value, name)) for name, _ in self._by_kind[kind][1])]

    def from_plain(self, plain: Any) -> Any:
        """Return the registered value in `[kind, fields...]`.

        Raises:
            UnknownKind: no such kind here.
            DecodeError: wrong shape or a field of the wrong type.
        """
        if not isinstance(plain, list) or not plain or not isinstance(plain[0], str):
            raise DecodeError("not [kind, fields...]")
        if plain[0] not in self._by_kind:
            raise UnknownKind(f"unknown kind {plain[0][:40]!r}")
        cls, fields = self._by_kind[plain[0]]
        if len(plain) - 1 != len(fields):
            raise DecodeError(f"{plain[0]} has {len(plain) - 1} fields; {len(fields)} are needed")
        values = [
            _checked(item, hint, f"{plain[0]}.{name}")
            for (name, hint), item in zip(fields, plain[1:], strict=True)
        ]
        try:
            return cls(*values)
        except ValueError as error:
            raise DecodeError(f"{plain[0]}: {error}") from None

    def encode(self, value: Any) -> bytes:
        """Return the frame of a registered value."""
        return pack(self.to_plain(value))

    def decode(self, data: bytes) -> Any:
        """Return the registered value in a frame (errors as in `from_plain`)."""
        return self.from_plain(unpack(data))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return value


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint` wants it, or raise DecodeError naming `where`."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _checked_union(value, typing.get_args(hint), where)
    if origin is tuple:
        if not isinstance(value, list):
            raise DecodeError(f"{where} is not a list")
        item_hint = typing.get_args(hint)[0]
        return tuple(_checked(item, item_hint, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise DecodeError(f"{where} is not a map")
        item_hint = typing.get_args(hint)[1]
        return {key: _checked(item, item_hint, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _checked_dataclass(value, hint, where)
    return _checked_scalar(value, hint, where)


def _checked_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is type(None):
            continue
        try:
            return _checked(value, option, where)
        except DecodeError:
            continue
    raise DecodeError(f"{where} has the wrong type")


def _checked_dataclass(value: Any, hint: type[Any], where: str) -> Any:
    fields = dataclasses.fields(hint)
    hints = typing.get_type_hints(hint)
    if not isinstance(value, list) or len(value) != len(fields):
        raise DecodeError(f"{where} is not a {hint.__name__}")
    return hint(
        *(
            _checked(item, hints[field.name], f"{where}.{field.name}")
            for field, item in zip(fields, value, strict=True)
        )
    )


def _checked_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise DecodeError(f"{where} is not an integer from 0 to 2^63 - 1")
    elif hint is str:
        if not isinstance(value, str) or len(value) > TEXT_LENGTH_MAX:
            raise DecodeError(f"{where} is not text of at most {TEXT_LENGTH_MAX} characters")
    elif hint is bytes:
        if not isinstance(value, bytes) or len(value) > FRAME_SIZE_BYTES_MAX:
            raise DecodeError(f"{where} is not bytes")
    elif hint is bool and not isinstance(value, bool):
        raise DecodeError(f"{where} is not a truth value")
    return value
