"""Job documents from outside: their shape is checked before anything reads a field.

Whether a document is normal for its app is decided where the app is at hand (`normalise`); here is
what every job document looks like, so that a member's wrong one is refused and not met later.
"""

from functools import lru_cache
from typing import Any

from pairio_protocol.cid import CidError, parse_cid
from pairio_protocol.documents import decode
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import (
    DECODED_MAX,
    DEFINITION_SIZE_BYTES_MAX,
    FILES_PER_JOB_MAX,
    NAME_LENGTH_MAX,
    PARAMETERS_PER_JOB_MAX,
    URL_LENGTH_MAX,
)

__all__ = ["decode_job"]

_FIELDS = {"type", "v", "app", "processor", "code", "inputs", "outputs", "parameters"}


@lru_cache(DECODED_MAX)
def decode_job(data: bytes) -> dict[str, Any]:
    """Return the job document in `data`; it is shared, and not to be changed.

    Raises:
        DecodeError: not a document, or not shaped as a job.
    """
    document = decode(data, DEFINITION_SIZE_BYTES_MAX)
    if not set(document) >= _FIELDS or not set(document) <= {*_FIELDS, "cache_bust"}:
        raise DecodeError("a job without its fields, or with others")
    if document["type"] != "pairio/job" or document["v"] != 1 or document["v"] is True:
        raise DecodeError("not a job of version 1")
    _text(document["app"], NAME_LENGTH_MAX)
    _text(document["processor"], NAME_LENGTH_MAX)
    _cid(document["code"])
    if "cache_bust" in document:
        _text(document["cache_bust"], NAME_LENGTH_MAX)
    for entry in _entries(document, "inputs", {"name", "base_name", "source"}, FILES_PER_JOB_MAX):
        _base_name(entry["base_name"])
        _source(entry["source"])
    for entry in _entries(document, "outputs", {"name", "base_name"}, FILES_PER_JOB_MAX):
        _base_name(entry["base_name"])
    _entries(document, "parameters", {"name", "value"}, PARAMETERS_PER_JOB_MAX)
    return document


def _entries(
    document: dict[str, Any], key: str, fields: set[str], count_max: int
) -> list[dict[str, Any]]:
    entries = document[key]
    if not isinstance(entries, list) or len(entries) > count_max:
        raise DecodeError(f"{key} of a job are not a list of at most {count_max}")
    names = []
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != fields:
            raise DecodeError(f"an entry of {key} has not the fields {', '.join(sorted(fields))}")
        names.append(_text(entry["name"], NAME_LENGTH_MAX + len("[9999]")))
    if names != sorted(set(names)):
        raise DecodeError(f"{key} of a job are not sorted, or name one twice")
    return entries


def _source(source: Any) -> None:
    match source:
        case {"cid": cid, **rest} if not rest:
            _cid(cid)
        case {"url": url, **rest} if not rest:
            _text(url, URL_LENGTH_MAX)
        case {"job": job, "output": output, **rest} if not rest:
            _cid(job)
            _text(output, URL_LENGTH_MAX)
        case _:
            raise DecodeError("a source is not {cid}, {url} or {job, output}")


def _cid(value: Any) -> None:
    try:
        parse_cid(_text(value, NAME_LENGTH_MAX))
    except CidError as error:
        raise DecodeError(str(error)) from None


def _base_name(value: Any) -> None:
    text = _text(value, 255)
    if text in ("", ".", "..") or len(text.encode()) > 255 or any(c in "/\0\n\r" for c in text):
        raise DecodeError("a base name of a job is no plain file name")


def _text(value: Any, length_max: int) -> str:
    if not isinstance(value, str) or len(value) > length_max:
        raise DecodeError(f"a text of a job is none, or longer than {length_max} characters")
    return value
