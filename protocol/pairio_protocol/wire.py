"""Frozen dataclasses on the wire: one declaration gives encoding, decoding and checking.

`@wire("kind")` registers a dataclass in a `Registry`. Encoded is `[kind, field, field, ...]` in
the order of declaration, without those at the end that have their default; decoding checks every
field against its annotation and length, so that a handler never sees a value of the wrong type.
Unknown kinds raise `UnknownKind`: the caller decides whether to keep such a thing.
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
#: Returns a decoded value as its annotation wants it, or raises DecodeError. Made once per field.
_Check = Callable[[Any], Any]


class UnknownKind(DecodeError):
    """A well-formed thing of a kind that this version does not know."""


class Registry:
    """The closed set of kinds that may stand in one place of the protocol."""

    def __init__(self) -> None:
        self._by_kind: dict[str, tuple[type[Any], list[tuple[str, _Check]]]] = {}
        self._defaults: dict[str, tuple[Any, ...]] = {}  # of the last fields
        self._kinds: dict[type[Any], str] = {}

    def wire(self, kind: str) -> Callable[[type[T]], type[T]]:
        """Register a dataclass under `kind` (a class decorator)."""

        def register(cls: type[T]) -> type[T]:
            self._by_kind[kind] = (cls, _field_checks(cls, kind))
            all_defaults = (f.default for f in dataclasses.fields(cls))  # type: ignore[arg-type]
            self._defaults[kind] = tuple(d for d in all_defaults if d is not dataclasses.MISSING)
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
        plain = [kind, *(_plain(getattr(value, name)) for name, _ in self._by_kind[kind][1])]
        for default in reversed(self._defaults[kind]):
            if plain[-1] != default:
                break
            plain.pop()
        return plain

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
        count, defaults = len(plain) - 1, self._defaults[plain[0]]
        left_out = len(fields) - count
        if not 0 <= left_out <= len(defaults):
            raise DecodeError(f"{plain[0]} has {count} fields; {len(fields)} are needed")
        if left_out < len(defaults) and plain[-1] == defaults[len(defaults) - left_out - 1]:
            raise DecodeError(f"{plain[0]} spells out a default at its end")
        values = [check(item) for (_, check), item in zip(fields, plain[1:], strict=False)]
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
    if isinstance(value, bytes | str | int):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return value


def _field_checks(cls: type[Any], where: str) -> list[tuple[str, _Check]]:
    hints = typing.get_type_hints(cls)
    return [
        (field.name, _check_of(hints[field.name], f"{where}.{field.name}"))
        for field in dataclasses.fields(cls)
    ]


def _check_of(hint: Any, where: str) -> _Check:
    """Return the check of an annotation; its errors name `where`."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _union_check(typing.get_args(hint), where)
    if origin is tuple:
        return _list_check(_check_of(typing.get_args(hint)[0], where), where)
    if origin is dict:
        return _map_check(_check_of(typing.get_args(hint)[1], where), where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass_check(hint, where)
    return _scalar_check(hint, where)


def _union_check(options: tuple[Any, ...], where: str) -> _Check:
    checks = [_check_of(option, where) for option in options if option is not type(None)]

    def check(value: Any) -> Any:
        if value is None and type(None) in options:
            return None
        for attempt in checks:
            try:
                return attempt(value)
            except DecodeError:
                continue
        raise DecodeError(f"{where} has the wrong type")

    return check


def _list_check(item_check: _Check, where: str) -> _Check:
    def check(value: Any) -> Any:
        if not isinstance(value, list):
            raise DecodeError(f"{where} is not a list")
        return tuple([item_check(item) for item in value])

    return check


def _map_check(item_check: _Check, where: str) -> _Check:
    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise DecodeError(f"{where} is not a map")
        return {key: item_check(item) for key, item in value.items()}

    return check


def _dataclass_check(cls: type[Any], where: str) -> _Check:
    checks = [check for _, check in _field_checks(cls, where)]

    def check(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(checks):
            raise DecodeError(f"{where} is not a {cls.__name__}")
        try:
            return cls(*[one(item) for one, item in zip(checks, value, strict=True)])
        except ValueError as error:
            raise DecodeError(f"{where}: {error}") from None

    return check


def _scalar_check(hint: Any, where: str) -> _Check:
    if hint is int:
        return _int_check(where)
    if hint is str:
        return _str_check(where)

    def check(value: Any) -> Any:
        if hint is bytes and (not isinstance(value, bytes) or len(value) > FRAME_SIZE_BYTES_MAX):
            raise DecodeError(f"{where} is not bytes")
        if hint is bool and not isinstance(value, bool):
            raise DecodeError(f"{where} is not a truth value")
        return value

    return check


def _int_check(where: str) -> _Check:
    def check(value: Any) -> int:
        if type(value) is not int or not 0 <= value < 2**63:  # a bool is no integer here
            raise DecodeError(f"{where} is not an integer from 0 to 2^63 - 1")
        return value

    return check


def _str_check(where: str) -> _Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > TEXT_LENGTH_MAX:
            raise DecodeError(f"{where} is not text of at most {TEXT_LENGTH_MAX} characters")
        return value

    return check
