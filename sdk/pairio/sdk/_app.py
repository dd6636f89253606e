"""Apps and processors: the spec they give, and how a processor is run inside a job.

`App.run()` decides by environment, as the original's: SPEC_OUTPUT_FILE writes the spec,
PAIRIO_JOB_FILE runs a job. Standard library only at top level: this runs inside jobs.
"""

from __future__ import annotations

import json
import os
import re
import sys

from pairio.sdk._files import InputFile, OutputFile

TYPE_CHECKING = False  # as typing's, whose import every job would pay for
if TYPE_CHECKING:
    import typing
    from collections.abc import Callable
    from typing import Any

__all__ = ["App", "ProcessorBase"]

_SCALARS = {str: "str", int: "int", float: "float", bool: "bool"}
_LIST_INDEX = r"^(.*)\[(0|[1-9][0-9]{0,3})\]$"


class ProcessorBase:
    """One computation. Subclasses set the attributes and `run(context)`."""

    name: str
    description: str = ""
    label: str = ""
    image: str | None = None
    executable: str = "main.py"
    attributes: typing.ClassVar[dict[str, Any]] = {}
    #: "full": the network of the machine, where its owner allows it.
    network: str = "none"
    #: Names of secrets that whoever submits gives; read them with `get_secret`.
    secrets: typing.ClassVar[list[str]] = []

    @staticmethod
    def run(context: Any) -> None:
        """Compute. The annotation of `context` is the pydantic model of inputs and parameters."""
        raise NotImplementedError


class App:
    """A bundle of processors."""

    def __init__(self, app_name: str, *, description: str = "") -> None:
        self._name = app_name
        self._description = description
        self._processors: list[type[ProcessorBase]] = []
        self._given: list[dict[str, Any]] = []
        self._warm_up: Callable[[], object] | None = None

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> App:
        """Return the app that a specification describes: `get_spec()` gives it again. It has no
        code, so jobs of these processors cannot be run by it.

        Raises:
            PairioError: it is no specification.
        """
        from pairio.sdk._specs import checked_spec

        checked = checked_spec(spec)
        app = cls(checked["name"], description=str(checked.get("description", "")))
        app._given = checked["processors"]
        return app

    @classmethod
    def from_spec_uri(cls, uri: str) -> App:
        """Return the app whose specification lies at a URI: http(s), `file://`, a page of a file on
        GitHub, or a path.

        Raises:
            PairioError: it cannot be had, or is none.
        """
        from pairio.sdk._specs import read_spec

        return cls.from_spec(read_spec(uri))

    def add_processor(self, processor: type[ProcessorBase]) -> None:
        """Add a processor class."""
        if not isinstance(getattr(processor, "name", None), str):
            raise TypeError(f"{processor.__name__} has no `name`: set it to a text")
        known = [*(p.name for p in self._processors), *(p["name"] for p in self._given)]
        if processor.name in known:
            raise ValueError(f"two processors are called {processor.name!r}")
        self._processors.append(processor)

    def set_warm_up(self, function: Callable[[], object]) -> None:
        """Have `function` called once in a process from which many jobs are forked, before any of
        them is there: let it import and compute what every job needs. Where each job has a process
        of its own from the start, it is not called."""
        self._warm_up = function

    def get_spec(self) -> dict[str, Any]:
        """Return the app's specification (spec.json)."""
        return {
            "name": self._name,
            "description": self._description,
            "processors": [*self._given, *(_processor_spec(p) for p in self._processors)],
        }

    def run(self) -> None:
        """Do what the environment asks: write the spec, or run a job."""
        spec_file = os.environ.get("SPEC_OUTPUT_FILE")
        job_file = os.environ.get("PAIRIO_JOB_FILE")
        if spec_file:
            with open(spec_file, "w") as file:
                json.dump(self.get_spec(), file, indent=2)
        elif job_file or self._wait_for_job():
            with open(job_file or os.environ["PAIRIO_JOB_FILE"]) as file:
                job = json.load(file)
            self._run_job(job)
        else:
            sys.exit(
                "error: this is a pairio app; it runs inside jobs\n\n"
                "hint: install it with `pairio app install SERVICE DIR`"
            )

    def _wait_for_job(self) -> bool:
        """In a warm worker of a node: wait until there is a job, in the process of which this
        returns True. Elsewhere False."""
        worker = sys.modules.get("_pairio_warm")
        if worker is None:
            return False
        if self._warm_up is not None:
            self._warm_up()
        asked = {str(p.attributes["warm"]) for p in self._processors if "warm" in p.attributes}
        worker.serve(asks="off" if "off" in asked else "single" if "single" in asked else "")
        return True

    def _run_job(self, job: dict[str, Any]) -> None:
        for processor in self._processors:
            if processor.name == job["processor"]:
                break
        else:
            sys.exit(f"error: app {self._name!r} has no processor {job['processor']!r}")
        context, outputs = _context(job)
        processor.run(context)
        missing = [o.name for o in outputs if not o.was_uploaded and not os.path.exists(o._path)]
        if missing:
            sys.exit(f"error: output {missing[0]!r} was not uploaded")


class _Node:
    """A context as the original gives it: plain attributes, nested by dots."""

    def dict(self) -> dict[str, Any]:
        """Return the attributes as a plain dict."""
        return {
            key: value.dict() if isinstance(value, _Node) else value
            for key, value in self.__dict__.items()
        }

    model_dump = dict


def _put(root: _Node, dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    node = root
    for part in path:
        node = node.__dict__.setdefault(part, _Node())
    node.__dict__[last] = value


def _context(job: dict[str, Any]) -> tuple[_Node, list[OutputFile]]:
    root, outputs = _Node(), []
    lists: dict[str, dict[int, InputFile]] = {name: {} for name in job["list_inputs"]}
    for entry in job["inputs"]:
        file = InputFile(entry["name"], entry.get("path"), entry["base_name"], entry.get("url", ""))
        match = re.match(_LIST_INDEX, entry["name"])
        if match and match[1] in lists:
            lists[match[1]][int(match[2])] = file
        else:
            _put(root, entry["name"], file)
    for name, files in lists.items():
        _put(root, name, [files[i] for i in sorted(files)])
    for entry in job["outputs"]:
        output = OutputFile(entry["name"], entry["path"], entry["base_name"])
        outputs.append(output)
        _put(root, entry["name"], output)
    for entry in job["parameters"]:
        _put(root, entry["name"], entry["value"])
    return root, outputs


def _processor_spec(processor: type[ProcessorBase]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": processor.name,
        "description": processor.description,
        "label": processor.label or processor.name,
        "image": processor.image,
        "executable": processor.executable,
        "inputs": [],
        "outputs": [],
        "parameters": [],
        "attributes": [{"name": k, "value": v} for k, v in processor.attributes.items()],
    }
    if processor.network != "none":
        spec["network"] = processor.network
    if processor.secrets:
        spec["secrets"] = list(processor.secrets)
    import typing

    hints = typing.get_type_hints(processor.run)
    hints.pop("return", None)
    if len(hints) != 1:
        raise TypeError(f"run of {processor.name!r} takes one parameter, annotated with its model")
    _collect(next(iter(hints.values())), "", spec)
    return spec


def _collect(model: Any, prefix: str, spec: dict[str, Any]) -> None:
    """Add the fields of a pydantic model to a spec, nested ones under dotted names."""
    import typing

    for key, field in model.model_fields.items():
        name, kind = f"{prefix}{key}", field.annotation
        entry: dict[str, Any] = {"name": name, "description": field.description or ""}
        if kind is InputFile:
            spec["inputs"].append({**entry, **_streamed(field)})
        elif typing.get_origin(kind) is list and typing.get_args(kind) == (InputFile,):
            spec["inputs"].append({**entry, "list": True, **_streamed(field)})
        elif kind is OutputFile:
            spec["outputs"].append(entry)
        elif hasattr(kind, "model_fields"):
            _collect(kind, f"{name}.", spec)
        else:
            spec["parameters"].append(_parameter_spec(entry, kind, field))


def _streamed(field: Any) -> dict[str, Any]:
    """Return `stream`, if `json_schema_extra={"stream": True}` asks for it."""
    extra = field.json_schema_extra
    return {"stream": True} if isinstance(extra, dict) and extra.get("stream") else {}


def _parameter_spec(entry: dict[str, Any], kind: Any, field: Any) -> dict[str, Any]:
    parameter = {"name": entry["name"], "type": _type_name(kind, entry["name"]), **entry}
    if not field.is_required():
        default = field.get_default(call_default_factory=True)
        if default is not None:
            _check_fits(default, parameter, "default")
            parameter["defaultValue"] = default
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "options" in extra:
        if not isinstance(extra["options"], list | tuple):
            raise TypeError(f"options of {entry['name']} are no list")
        for option in extra["options"]:
            _check_fits(option, parameter, "option")
        parameter["options"] = list(extra["options"])
    return parameter


def _check_fits(value: Any, parameter: dict[str, Any], what: str) -> None:
    """Refuse a default or an option that no submitter could give (TypeError)."""
    kind = parameter["type"].removeprefix("Optional[").removesuffix("]")
    if kind.startswith("List["):
        fits = isinstance(value, list) and all(_is_a(item, kind[len("List[") :]) for item in value)
    else:
        fits = _is_a(value, kind)
    if not fits:
        raise TypeError(
            f"the {what} of {parameter['name']} is {value!r}, which is no {parameter['type']}"
        )


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind.startswith("bool")
    types_of = {"str": str, "int": int, "float": (int, float), "bool": bool}
    return isinstance(value, types_of[kind.rstrip("]")])  # type: ignore[arg-type]


def _type_name(kind: Any, name: str) -> str:
    import types
    import typing

    if kind in _SCALARS:
        return _SCALARS[kind]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and len(args) == 1 and args[0] in _SCALARS:
        return f"List[{_SCALARS[args[0]]}]"
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1 and len(args) == 2:
            return f"Optional[{_type_name(inner[0], name)}]"
    raise TypeError(
        f"{name} has type {kind}; use str, int, float, bool, a List or an Optional of them,"
        " InputFile, List[InputFile], OutputFile, or a nested model"
    )
