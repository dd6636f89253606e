"""A job definition against its processor's spec: one wish, one document, one job id.

Defaults are filled in, values take the declared type (1 for a float is 1.0), names are sorted by
code point, unknown or ill-typed things are refused. So giving a default and leaving it out is the
same job, and the order in which somebody writes things down never matters.

Source: DESIGN section 4; vectors in `protocol/vectors/definitions.json`.
"""

import math
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from pairio_protocol.apps import code_of, find_processor
from pairio_protocol.cid import CidError, as_v1, parse_cid
from pairio_protocol.documents import document_cid, encode
from pairio_protocol.errors import DefinitionError
from pairio_protocol.limits import (
    DEFINITION_SIZE_BYTES_MAX,
    FILES_PER_JOB_MAX,
    NAME_LENGTH_MAX,
    PARAMETERS_PER_JOB_MAX,
    TEXT_LENGTH_MAX,
    URL_LENGTH_MAX,
)

__all__ = [
    "definition_of",
    "is_normal",
    "job_id_of",
    "normalise",
    "parse_source",
    "path_in_folder",
    "source_text",
]

_LIST_INDEX = re.compile(r"^(.*)\[(0|[1-9][0-9]{0,3})\]$")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FIELDS = ("appName", "processorName", "inputFiles", "outputFiles", "parameters", "cacheBust")


def normalise(definition: dict[str, Any], app: dict[str, Any]) -> dict[str, Any]:
    """Return the job document of a definition in the original's form.

    Args:
        definition: `{appName, processorName, inputFiles, outputFiles, parameters, cacheBust?}`.
        app: the validated app document that the service lists under `appName`.

    Raises:
        DefinitionError: something unknown, missing, ill-typed or too large; says what is allowed.
    """
    unknown = sorted(set(definition) - set(_FIELDS))
    if unknown:
        raise DefinitionError(
            f"unknown field {unknown[0]!r} in the job definition", f"use {', '.join(_FIELDS)}"
        )
    processor = find_processor(app, str(definition.get("processorName")))
    document: dict[str, Any] = {
        "type": "pairio/job",
        "v": 1,
        "app": app["name"],
        "processor": processor["name"],
        "code": code_of(app, processor),
        "inputs": _inputs(_entries(definition, "inputFiles", FILES_PER_JOB_MAX), processor),
        "outputs": _outputs(_entries(definition, "outputFiles", FILES_PER_JOB_MAX), processor),
        "parameters": _parameters(
            _entries(definition, "parameters", PARAMETERS_PER_JOB_MAX), processor
        ),
    }
    cache_bust = definition.get("cacheBust")
    if cache_bust is not None:
        if not isinstance(cache_bust, str) or len(cache_bust) > NAME_LENGTH_MAX:
            raise DefinitionError(f"cacheBust is not text of at most {NAME_LENGTH_MAX} characters")
        document["cache_bust"] = cache_bust
    size = len(encode(document))
    if size > DEFINITION_SIZE_BYTES_MAX:
        raise DefinitionError(
            f"the job definition has {size} bytes; at most {DEFINITION_SIZE_BYTES_MAX}",
            "put large parameters into an input file",
        )
    return document


def definition_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return a job document in the original's form."""
    definition: dict[str, Any] = {
        "appName": document["app"],
        "processorName": document["processor"],
        "inputFiles": [
            {
                "name": entry["name"],
                "fileBaseName": entry["base_name"],
                "url": source_text(entry["source"]),
            }
            for entry in document["inputs"]
        ],
        "outputFiles": [
            {"name": entry["name"], "fileBaseName": entry["base_name"]}
            for entry in document["outputs"]
        ],
        "parameters": [dict(entry) for entry in document["parameters"]],
    }
    if "cache_bust" in document:
        definition["cacheBust"] = document["cache_bust"]
    return definition


def is_normal(document: dict[str, Any], app: dict[str, Any]) -> bool:
    """Say whether a job document is what `normalise` makes of it, for an app as it is now."""
    try:
        return encode(normalise(definition_of(document), app)) == encode(document)
    except DefinitionError:
        return False


def job_id_of(document: dict[str, Any]) -> str:
    """Return the job id: the CID of the job document."""
    return document_cid(encode(document))


def parse_source(text: str) -> dict[str, Any]:
    """Return the source that `text` names: `{cid}`, `{url}` or `{job, output}`.

    Understands a CID (of version 0 too), `ipfs://CID`, `job:ID/OUTPUT`, http(s) URLs, and gateway
    URLs: those of a node on this machine (any port) and whole-CID URLs of public gateways become
    the CID.

    Raises:
        DefinitionError: none of these.
    """
    if len(text) > URL_LENGTH_MAX:
        raise DefinitionError(
            f"an input's URL has {len(text)} characters; at most {URL_LENGTH_MAX}"
        )
    if text.startswith("job:"):
        job, slash, output = text[4:].partition("/")
        if not slash or not output:
            raise DefinitionError(f"{text!r} names no output", "write job:ID/OUTPUT")
        return {"job": _cid(job, text), "output": unquote(output)}
    if text.startswith("ipfs://"):
        return {"cid": _cid(text[len("ipfs://") :].rstrip("/"), text)}
    parts = urlsplit(text)
    if parts.scheme in ("http", "https") and parts.hostname:
        if _lies_below(parts.hostname, parts.path) is not None:
            raise DefinitionError(
                f"{text[:200]!r} names something in a folder", "give its own CID, as ipfs://CID"
            )
        cid = _gateway_cid(parts.hostname, parts.path)
        return {"cid": cid} if cid else {"url": text}
    if "://" not in text and "/" not in text and len(text) > 40:
        return {"cid": _cid(text, text)}
    raise DefinitionError(
        f"input {text[:200]!r} is no source",
        "use a CID, an http(s) URL, or job:ID/OUTPUT; a file is added to the node first",
    )


def source_text(source: dict[str, Any]) -> str:
    """Return the text that `parse_source` reads as `source`."""
    if "cid" in source:
        return f"ipfs://{source['cid']}"
    if "url" in source:
        return str(source["url"])
    return f"job:{source['job']}/{source['output']}"


def path_in_folder(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Return (CID, path) of a text that names something in a folder: `ipfs://CID/A/B`, or a gateway
    URL of this machine; None when it does not. The core cannot look into folders: a node does."""
    if text.startswith("ipfs://"):
        cid, *path = text[len("ipfs://") :].rstrip("/").split("/")
        return (_cid(cid, text), tuple(map(unquote, path))) if path else None
    parts = urlsplit(text)
    return _lies_below(parts.hostname or "", parts.path)


def _lies_below(host: str, path: str) -> tuple[str, tuple[str, ...]] | None:
    first, *rest = path.strip("/").split("/")
    if host not in _LOOPBACK or first != "ipfs" or len(rest) < 3:
        return None
    cid = _cid_or_none(rest[0])
    return (cid, tuple(map(unquote, rest[2:]))) if cid else None


def _gateway_cid(host: str, path: str) -> str | None:
    """Return the CID a gateway URL stands for, or None when it is an ordinary URL."""
    first = path.strip("/").split("/")
    if len(first) >= 2 and first[0] == "ipfs":
        # On this machine what follows the CID is a file name; elsewhere it may be a path into it.
        if host in _LOOPBACK or len(first) == 2:
            return _cid_or_none(first[1])
        return None
    label, _, rest = host.partition(".")
    if rest.startswith("ipfs.") and not path.strip("/"):
        return _cid_or_none(label)
    return None


def _cid(text: str, whole: str) -> str:
    try:
        return as_v1(text)
    except CidError as error:
        raise DefinitionError(f"{whole[:200]!r}: {error}") from None


def _cid_or_none(text: str) -> str | None:
    try:
        parse_cid(text)  # of version 1: URLs with others are URLs, as they always were
    except CidError:
        return None
    return text


def _entries(definition: dict[str, Any], key: str, count_max: int) -> dict[str, dict[str, Any]]:
    """Return the entries of one list of the definition by name."""
    raw = definition.get(key) or []
    if not isinstance(raw, list) or len(raw) > count_max:
        raise DefinitionError(f"{key} is not a list of at most {count_max}")
    found: dict[str, dict[str, Any]] = {}
    for entry in raw:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise DefinitionError(f"an entry of {key} has no name")
        if entry["name"] in found:
            raise DefinitionError(f"{key} names {entry['name']!r} twice")
        found[entry["name"]] = entry
    return found


def _expect(names: set[str], known: list[str], what: str, processor: dict[str, Any]) -> None:
    unknown = sorted(names - set(known))
    if unknown:
        allowed = ", ".join(known) or "none"
        raise DefinitionError(
            f"processor {processor['name']!r} has no {what} {unknown[0]!r}",
            f"its {what}s are: {allowed}",
        )


def _inputs(given: dict[str, dict[str, Any]], processor: dict[str, Any]) -> list[dict[str, Any]]:
    lists = {i["name"] for i in processor["inputs"] if i["list"]}
    indexed: dict[str, list[int]] = {name: [] for name in lists}
    for name in given:
        match = _LIST_INDEX.match(name)
        if match and match[1] in lists:
            indexed[match[1]].append(int(match[2]))
    plain = {n for n in given if not ((m := _LIST_INDEX.match(n)) and m[1] in lists)}
    _expect(plain, [i["name"] for i in processor["inputs"]], "input", processor)
    for name, numbers in indexed.items():
        if sorted(numbers) != list(range(len(numbers))):
            raise DefinitionError(f"list input {name!r} has gaps", f"use {name}[0], {name}[1], ...")
        if name in plain:
            raise DefinitionError(f"input {name!r} is a list", f"use {name}[0], {name}[1], ...")
    for spec in processor["inputs"]:
        if not spec["list"] and spec["name"] not in given:
            raise DefinitionError(
                f"input {spec['name']!r} is missing", f"processor {processor['name']!r} needs it"
            )
    return [_input(name, given[name]) for name in sorted(given)]


def _input(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    url = entry.get("url")
    if not isinstance(url, str) or not url:
        raise DefinitionError(f"input {name!r} has no url")
    source = parse_source(url)
    base_name = entry.get("fileBaseName") or _base_name_of(source, name)
    return {"name": name, "base_name": _base_name(base_name, f"input {name!r}"), "source": source}


def _base_name_of(source: dict[str, Any], name: str) -> str:
    if "url" in source:
        return unquote(urlsplit(source["url"]).path.rstrip("/").rpartition("/")[2]) or name
    return str(source["output"]) if "output" in source else name


def _outputs(given: dict[str, dict[str, Any]], processor: dict[str, Any]) -> list[dict[str, Any]]:
    known = [o["name"] for o in processor["outputs"]]
    _expect(set(given), known, "output", processor)
    missing = sorted(set(known) - set(given))
    if missing:
        raise DefinitionError(
            f"output {missing[0]!r} is missing", f"outputs of {processor['name']!r}: {known}"
        )
    return [
        {
            "name": name,
            "base_name": _base_name(given[name].get("fileBaseName") or name, f"output {name!r}"),
        }
        for name in sorted(given)
    ]


def _base_name(value: Any, where: str) -> str:
    if (
        not isinstance(value, str)
        or value in (".", "..")
        or not 0 < len(value.encode(errors="surrogatepass")) <= 255
        or any(c in "/\0\n\r" for c in value)
    ):
        raise DefinitionError(
            f"fileBaseName of {where} is {value!r}", "use a plain file name, at most 255 bytes"
        )
    return value


def _parameters(
    given: dict[str, dict[str, Any]], processor: dict[str, Any]
) -> list[dict[str, Any]]:
    _expect(set(given), [p["name"] for p in processor["parameters"]], "parameter", processor)
    values = []
    for spec in sorted(processor["parameters"], key=lambda p: str(p["name"])):
        entry = given.get(spec["name"], {})
        values.append({"name": spec["name"], "value": _parameter(spec, entry.get("value"))})
    return values


def _parameter(spec: dict[str, Any], value: Any) -> Any:
    """Return the value of one parameter in its declared type. None means: not given."""
    kind, optional = spec["type"], False
    if kind.startswith("Optional["):
        kind, optional = kind[len("Optional[") : -1], True
    if value is None:
        value = spec.get("defaultValue")
    if value is None:
        if optional:
            return None
        raise DefinitionError(
            f"parameter {spec['name']!r} is missing", f"give it a value of type {spec['type']}"
        )
    value = _coerced(value, kind, spec)
    options = spec.get("options")
    if options and value not in [_coerced(option, kind, spec) for option in options]:
        raise DefinitionError(f"parameter {spec['name']!r} is {value!r}", f"use one of {options}")
    return value


def _coerced(value: Any, kind: str, spec: dict[str, Any]) -> Any:
    if kind.startswith("List["):
        if not isinstance(value, list) or len(value) > PARAMETERS_PER_JOB_MAX * 8:
            raise _ill_typed(value, spec)
        return [_coerced(item, kind[len("List[") : -1], spec) for item in value]
    if kind == "str" and isinstance(value, str):
        if len(value) > TEXT_LENGTH_MAX:
            raise DefinitionError(
                f"parameter {spec['name']!r} has {len(value)} characters; at most {TEXT_LENGTH_MAX}"
            )
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _ill_typed(value, spec)
    if kind == "int" and value == int_or_none(value):
        return int(value)
    if kind == "float" and not (isinstance(value, int) and abs(value) > 2**1023):
        number = float(value)
        if math.isfinite(number) and number == value:  # an integer that a float cannot hold
            return number + 0.0  # -0.0 becomes 0.0
    raise _ill_typed(value, spec)


def int_or_none(value: float) -> int | None:
    """Return the integer of 64 bits that `value` is, else None."""
    if not math.isfinite(value) or value != math.floor(value):
        return None
    return int(value) if -(2**63) <= value < 2**64 else None


def _ill_typed(value: Any, spec: dict[str, Any]) -> DefinitionError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DefinitionError(f"parameter {spec['name']!r} is {shown}", f"give it a {spec['type']}")
