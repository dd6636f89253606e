"""`BaseModel` and `Field` inside a job, until something needs pydantic. Standard library only.

Importing pydantic takes longer than many jobs, and a job never looks at the models of its contexts.
So a class that only declares fields is kept as it was written. Whatever asks for more (a class with
methods, a call, an attribute, anybody's `import pydantic`) has pydantic imported, and every such
class, `BaseModel` and `Field` replaced by the real ones wherever modules have them, in the order in
which they were written. What refers to a class from elsewhere is led to the real one.

A job of a warm worker that comes to need it leaves a mark for the node, whose later workers for
this app have it from the start.
"""

from __future__ import annotations

import os
import sys
from abc import ABCMeta

TYPE_CHECKING = False  # as typing's, whose import every job would pay for
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BaseModel", "Field"]

_PLAIN = (str, int, float, bool, list, tuple, dict, set, frozenset, type(None))
_OF_EVERY_CLASS = {"__module__", "__qualname__", "__doc__", "__annotations__"}
#: The node looks for it, beside the job's file (`runner/zygote/runner.py`).
_MARK = "pydantic-was-imported"
_OF_EVERY_CLASS |= {"__firstlineno__", "__static_attributes__"}  # since Python 3.13


class _Given:
    """The arguments of a `Field`."""

    def __init__(self, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._positional, self._named = positional, named

    def real(self) -> Any:
        return _pydantic().Field(*self._positional, **self._named)


def Field(*positional: Any, **named: Any) -> Any:  # noqa: N802 - as pydantic's
    """Describe a field, as pydantic's."""
    if "__qualname__" in sys._getframe(1).f_locals:  # the body of a class, which looks at it
        return _Given(positional, named)
    return _pydantic().Field(*positional, **named)


class _Declared(ABCMeta):
    """What the classes are before they are pydantic's."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> Any:
        if not bases:
            return super().__new__(mcs, name, bases, namespace)
        if options or not _only_declares(name, bases, namespace):
            _pydantic()
            return _built(name, bases, namespace, options)
        shown = {key: namespace[key] for key in _OF_EVERY_CLASS & namespace.keys()}
        made = super().__new__(mcs, name, bases, shown)
        _written[made] = namespace
        return made

    def __call__(cls, *positional: Any, **named: Any) -> Any:
        return _real_of(cls)(*positional, **named)

    def __getattr__(cls, name: str) -> Any:
        return getattr(_real_of(cls), name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls in _real and isinstance(instance, _real[cls])

    def __subclasscheck__(cls, subclass: type) -> bool:
        if cls not in _real:
            return super().__subclasscheck__(subclass)
        return issubclass(_real.get(subclass, subclass), _real[cls])


class BaseModel(metaclass=_Declared):
    """A model, as pydantic's."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """A field of another model has such a class in its type."""
        return handler.generate_schema(_real_of(cls))


#: Classes that only declare, with their bodies, in the order in which they were written.
_written: dict[type, dict[str, Any]] = {}
#: What became of them, and of `BaseModel`.
_real: dict[type, type] = {}


def _only_declares(name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> bool:
    """Say whether the body of a class, outside of others and of functions, has nothing but fields
    with plain defaults."""
    if bases[1:] or bases[0] in _real or not isinstance(bases[0], _Declared):
        return False
    fields = namespace.get("__annotations__", {})
    return (
        "pydantic" not in sys.modules
        and namespace["__qualname__"] == name
        and not any(key.startswith("_") or _has_given(type_) for key, type_ in fields.items())
        and all(
            key in _OF_EVERY_CLASS
            or (key in fields and (isinstance(value, _Given) or type(value) in _PLAIN))
            for key, value in namespace.items()
        )
    )


def _pydantic() -> Any:
    import pydantic

    return pydantic


def _real_of(cls: type) -> type:
    _pydantic()
    return _real[cls]


def _built(
    name: str, bases: tuple[type, ...], namespace: dict[str, Any], options: dict[str, Any]
) -> type:
    """Return the real class."""
    real_bases = tuple(_real.get(base, base) for base in bases)
    body = {key: v.real() if isinstance(v, _Given) else v for key, v in namespace.items()}
    if "__annotations__" in body:
        body["__annotations__"] = {k: _real_type(v) for k, v in body["__annotations__"].items()}
    first = next(base for base in bases if isinstance(base, _Declared))
    made: type = type(_real[first])(name, real_bases, body, **options)
    return made


def _has_given(type_: Any) -> bool:
    """Say whether a type has a `Field` in it: `Annotated[str, Field(...)]`."""
    if isinstance(type_, type | _Given):
        return isinstance(type_, _Given)
    parts = (*getattr(type_, "__metadata__", ()), *getattr(type_, "__args__", ()))
    return any(map(_has_given, parts))


def _real_type(type_: Any) -> Any:
    if isinstance(type_, _Declared):
        return _real.get(type_, type_)
    if not _has_given(type_):
        return type_
    if isinstance(type_, _Given):
        return type_.real()
    import functools
    import operator
    import types
    import typing

    parts = tuple(map(_real_type, type_.__args__))
    if hasattr(type_, "__metadata__"):
        return typing.Annotated[(parts[0], *map(_real_type, type_.__metadata__))]
    if isinstance(type_, types.UnionType):
        return functools.reduce(operator.or_, parts)
    return type_.copy_with(parts) if hasattr(type_, "copy_with") else type_.__origin__[parts]


# -- when pydantic comes ----------------------------------------------------------------------


class _Watch:
    """Looks out for pydantic's import, whoever asks for it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "pydantic":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec: Any = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader:
    """Loads pydantic as its own loader does; afterwards all is real."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: Any) -> Any:
        return self._own.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        _replace(module)
        if "_pairio_warm" in sys.modules and "PAIRIO_JOB_FILE" in os.environ:
            _leave_mark(os.path.dirname(os.environ["PAIRIO_JOB_FILE"]))


def _leave_mark(folder: str) -> None:
    import contextlib

    with contextlib.suppress(OSError):  # the job's disk is full: the next one will say it
        open(os.path.join(folder, _MARK), "w").close()


def _replace(pydantic: Any) -> None:
    """Build all that was only written. A class is in its modules when it has been built, and not
    before, as if it were being written now: that is what its later ones and pydantic go by."""
    places = _places({id(one): one for one in (BaseModel, Field, *_written)})
    for names, name, _ in places:
        del names[name]
    _real[BaseModel] = pydantic.BaseModel
    _put(places, BaseModel, pydantic.BaseModel)
    _put(places, Field, pydantic.Field)
    for made, namespace in list(_written.items()):
        _real[made] = _built(made.__name__, made.__bases__, namespace, {})
        _put(places, made, _real[made])


def _places(wanted: dict[int, Any]) -> list[tuple[dict[str, Any], str, Any]]:
    """Return the modules' names of some objects, by identity."""
    found = []
    for module_name, module in list(sys.modules.items()):
        names = getattr(module, "__dict__", None)
        if module_name == __name__ or not isinstance(names, dict):
            continue
        found += [(names, n, wanted[id(v)]) for n, v in list(names.items()) if id(v) in wanted]
    return found


def _put(places: list[tuple[dict[str, Any], str, Any]], declared: Any, real: Any) -> None:
    for names, name, value in places:
        if value is declared:
            names[name] = real


sys.meta_path.insert(0, _Watch())
