"""Apps and processors as documents: what an installed app says, and what `code` a job names.

An app document stands in a service change: `{name, description, bundle, processors}`; `bundle` is
the CID of the app's folder. The **processor record** holds everything that can change a result
(bundle, executable, image, declared names and types) and nothing else; its CID is the job's `code`.
Labels and descriptions are for people and are not hashed.

A processor that runs in a container has `container: {archive, id}`: the CID of a docker-archive
and the image's id, which is the digest of its configuration. Then the name in `image` is for
people, too. Without `container` the name is all that is known, and the app runs without an image.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pairio_protocol.cid import CidError, parse_cid
from pairio_protocol.documents import document_cid, encode
from pairio_protocol.errors import DefinitionError
from pairio_protocol.limits import (
    NAME_LENGTH_MAX,
    PARAMETERS_PER_JOB_MAX,
    SECRETS_PER_JOB_MAX,
    TEXT_LENGTH_MAX,
)

__all__ = [
    "PARAMETER_TYPES",
    "Needs",
    "archives_of",
    "code_of",
    "find_processor",
    "needs_of",
    "processor_record",
    "validate_app",
]

_IMAGE_ID = re.compile("sha256:[0-9a-f]{64}")
_SCALARS = ("str", "int", "float", "bool")
_LISTS = tuple(f"List[{scalar}]" for scalar in _SCALARS)
#: The union of what the original's server and its Python SDK know.
PARAMETER_TYPES = (
    *_SCALARS,
    *_LISTS,
    *(f"Optional[{inner}]" for inner in (*_SCALARS, *_LISTS)),
)
_NETWORKS = ("none", "full")
#: Names of secrets are names of files, and of variables.
_SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Needs:
    """What a processor asks of a node and of its submitter beyond resources: the machine's network,
    and secrets by name. Such a run is *exclusive*: it ends before its lease does."""

    network: bool = False
    secrets: tuple[str, ...] = ()

    @property
    def exclusive(self) -> bool:
        """Say whether a run must not go on without its lease."""
        return self.network or bool(self.secrets)

    @staticmethod
    def of(processor: Mapping[str, Any]) -> "Needs":
        """Return what a validated processor needs."""
        full = processor.get("network") == "full"
        return Needs(full, tuple(processor.get("secrets", ())))

    def check_given(self, names: tuple[str, ...]) -> None:
        """Raise DefinitionError when a secret was given that the processor does not ask for."""
        for name in names:
            if name not in self.secrets:
                known = ", ".join(self.secrets) or "none"
                raise DefinitionError(
                    f"the processor asks for no secret {name[:80]!r}", f"it asks for: {known}"
                )

    def check_missing(self, names: tuple[str, ...]) -> None:
        """Raise DefinitionError when a secret that the processor asks for was not given."""
        for name in self.secrets:
            if name not in names:
                raise DefinitionError(
                    f"the processor asks for the secret {name!r}, and none was given",
                    f"pairio submit --secret {name}=@FILE, or submit_job(secrets=...)",
                )


def needs_of(apps: Mapping[str, dict[str, Any]], document: Mapping[str, Any]) -> Needs:
    """Return what a job needs by the list's apps as they are; nothing if it is not on the list."""
    app = apps.get(document["app"])
    for processor in app["processors"] if app is not None else ():
        if processor["name"] == document["processor"]:
            return Needs.of(processor)
    return Needs()


def validate_app(app: Any) -> dict[str, Any]:
    """Return `app` with every field of the specification, or say what is wrong with it.

    Raises:
        DefinitionError: a missing or ill-typed field, a name used twice, an unknown type.
    """
    where = "app"
    name = _text(app, "name", where, NAME_LENGTH_MAX)
    bundle = _text(app, "bundle", where, 200)
    try:
        parse_cid(bundle)
    except CidError as error:
        raise DefinitionError(f"{where}.bundle: {error}") from None
    processors = [
        _processor(p, f"{where}.processors[{i}]")
        for i, p in enumerate(_list(app, "processors", where))
    ]
    _unique([p["name"] for p in processors], f"{where}.processors")
    return {
        "name": name,
        "description": _text(app, "description", where, TEXT_LENGTH_MAX, ""),
        "bundle": bundle,
        "processors": processors,
    }


def _processor(raw: Any, where: str) -> dict[str, Any]:
    inputs = [
        {
            "name": _text(i, "name", f"{where}.inputs", NAME_LENGTH_MAX),
            "description": _text(i, "description", f"{where}.inputs", TEXT_LENGTH_MAX, ""),
            "list": bool(i.get("list", False)),
            **({"stream": True} if i.get("stream") else {}),
        }
        for i in _list(raw, "inputs", where, [])
    ]
    outputs = [
        {
            "name": _text(o, "name", f"{where}.outputs", NAME_LENGTH_MAX),
            "description": _text(o, "description", f"{where}.outputs", TEXT_LENGTH_MAX, ""),
        }
        for o in _list(raw, "outputs", where, [])
    ]
    parameters = [
        _parameter(p, f"{where}.parameters[{i}]")
        for i, p in enumerate(_list(raw, "parameters", where, []))
    ]
    for kind, entries in (("inputs", inputs), ("outputs", outputs), ("parameters", parameters)):
        _unique([str(entry["name"]) for entry in entries], f"{where}.{kind}")
    image = raw.get("image")
    container = raw.get("container")
    # Set only where there is one: what was installed before keeps its bytes.
    runs_in = {} if container is None else {"container": _container(container, where)}
    return runs_in | {
        "name": _text(raw, "name", where, NAME_LENGTH_MAX),
        "description": _text(raw, "description", where, TEXT_LENGTH_MAX, ""),
        "label": _text(raw, "label", where, NAME_LENGTH_MAX, ""),
        "image": None if image is None else _text(raw, "image", where, 1000, ""),
        "executable": _text(raw, "executable", where, 1000),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": parameters,
        "attributes": list(_list(raw, "attributes", where, [])),
        **_needs(raw, where),
    }


def _needs(raw: Any, where: str) -> dict[str, Any]:
    """Return network and secrets as they stand in a processor: left out when nothing is needed."""
    network = raw.get("network") or "none"
    if network not in _NETWORKS:
        raise DefinitionError(f"{where}.network is {network!r}", f"use {' or '.join(_NETWORKS)}")
    names = _list(raw, "secrets", where, [])
    for name in names:
        if not isinstance(name, str) or not _SECRET_NAME.fullmatch(name):
            raise DefinitionError(
                f"{where}.secrets: {str(name)[:80]!r} is no name",
                "use letters, digits and _, at most 64",
            )
    if len(names) > SECRETS_PER_JOB_MAX:
        raise DefinitionError(f"{where}.secrets has {len(names)}; at most {SECRETS_PER_JOB_MAX}")
    _unique(names, f"{where}.secrets")
    needs: dict[str, Any] = {"network": network} if network != "none" else {}
    return needs | ({"secrets": sorted(names)} if names else {})


def _container(raw: Any, where: str) -> dict[str, Any]:
    where = f"{where}.container"
    archive = _text(raw, "archive", where, 200)
    try:
        parse_cid(archive)
    except CidError as error:
        raise DefinitionError(f"{where}.archive: {error}") from None
    image_id = _text(raw, "id", where, 200)
    if not _IMAGE_ID.fullmatch(image_id):
        raise DefinitionError(
            f"{where}.id is {image_id!r}", "use the image's id: sha256: and 64 hexadecimal digits"
        )
    return {"archive": archive, "id": image_id}


def archives_of(app: dict[str, Any]) -> list[str]:
    """Return the CIDs of the docker-archives that an app's processors run in, each once."""
    found = (p["container"]["archive"] for p in app["processors"] if "container" in p)
    return list(dict.fromkeys(found))


def _parameter(raw: Any, where: str) -> dict[str, Any]:
    kind = _text(raw, "type", where, 100)
    if kind not in PARAMETER_TYPES:
        raise DefinitionError(
            f"{where}.type is {kind!r}", f"use one of {', '.join(PARAMETER_TYPES)}"
        )
    parameter: dict[str, Any] = {
        "name": _text(raw, "name", where, NAME_LENGTH_MAX),
        "type": kind,
        "description": _text(raw, "description", where, TEXT_LENGTH_MAX, ""),
    }
    if raw.get("defaultValue") is not None:
        parameter["defaultValue"] = raw["defaultValue"]
    if raw.get("options") is not None:
        parameter["options"] = list(_list(raw, "options", where))
    return parameter


def find_processor(app: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the processor called `name`, or raise DefinitionError naming those that exist."""
    for processor in app["processors"]:
        if processor["name"] == name:
            return processor  # type: ignore[no-any-return]
    known = ", ".join(sorted(p["name"] for p in app["processors"])) or "none"
    raise DefinitionError(
        f"app {app['name']!r} has no processor {name!r}", f"its processors are: {known}"
    )


def processor_record(app: dict[str, Any], processor: dict[str, Any]) -> dict[str, Any]:
    """Return all of a processor that can change a result, in one order."""
    container = processor.get("container")
    asked = {key: processor[key] for key in ("container", "network", "secrets") if key in processor}
    return asked | {
        "type": "pairio/processor",
        "v": 1,
        "bundle": app["bundle"],
        "executable": processor["executable"],
        "image": None if container else processor["image"],
        "inputs": sorted(
            (
                {key: i[key] for key in ("name", "list", "stream") if key in i}
                for i in processor["inputs"]
            ),
            key=lambda i: str(i["name"]),
        ),
        "outputs": sorted(o["name"] for o in processor["outputs"]),
        "parameters": sorted(
            (
                {key: p[key] for key in ("name", "type", "defaultValue", "options") if key in p}
                for p in processor["parameters"]
            ),
            key=lambda p: str(p["name"]),
        ),
    }


def code_of(app: dict[str, Any], processor: dict[str, Any]) -> str:
    """Return the CID of the processor record: the `code` of a job definition."""
    return document_cid(encode(processor_record(app, processor)))


_REQUIRED: Any = object()


def _text(raw: Any, key: str, where: str, length_max: int, default: Any = _REQUIRED) -> str:
    value = _get(raw, key, where, default)
    if not isinstance(value, str):
        raise DefinitionError(f"{where}.{key} is {type(value).__name__}; use text")
    if len(value) > length_max:
        raise DefinitionError(f"{where}.{key} has {len(value)} characters; at most {length_max}")
    if default is _REQUIRED and not value:
        raise DefinitionError(f"{where}.{key} is empty")
    return value


def _list(raw: Any, key: str, where: str, default: Any = _REQUIRED) -> list[Any]:
    value = _get(raw, key, where, default)
    if not isinstance(value, list) or len(value) > PARAMETERS_PER_JOB_MAX:
        raise DefinitionError(f"{where}.{key} is not a list of at most {PARAMETERS_PER_JOB_MAX}")
    return value


def _get(raw: Any, key: str, where: str, default: Any) -> Any:
    if not isinstance(raw, dict):
        raise DefinitionError(f"{where} is {type(raw).__name__}; use a map")
    value = raw.get(key, default)
    if value is _REQUIRED:
        raise DefinitionError(f"{where}.{key} is missing")
    return value


def _unique(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DefinitionError(f"{where}: {', '.join(twice)} stands there more than once")
