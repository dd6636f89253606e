"""Specifications of apps from elsewhere (spec.json). Standard library only."""

import json
import re
from typing import Any

from pairio.errors import PairioError

__all__ = ["checked_spec", "read_spec"]

_SIZE_BYTES_MAX = 1024 * 1024
_TIMEOUT_S = 30
_GITHUB_PAGE = re.compile(r"https://github\.com/([^/]+/[^/]+)/blob/(.+)")


def read_spec(uri: str) -> dict[str, Any]:
    """Return the specification behind a URI: http(s), `file://`, a GitHub page, or a path.

    Raises:
        PairioError: it cannot be had, or is none.
    """
    page = _GITHUB_PAGE.fullmatch(uri)
    address = f"https://raw.githubusercontent.com/{page[1]}/{page[2]}" if page else uri
    try:
        text = _bytes(address)
    except (OSError, ValueError) as error:
        raise PairioError(f"cannot read {uri!r}: {error}", "give the URI of a spec.json") from None
    if len(text) > _SIZE_BYTES_MAX:
        raise PairioError(f"{uri!r} has more than {_SIZE_BYTES_MAX} bytes", "is it a spec.json?")
    try:
        return checked_spec(json.loads(text))
    except ValueError:
        raise PairioError(f"{uri!r} is no JSON", "give the URI of a spec.json") from None


def _bytes(uri: str) -> bytes:
    if uri.startswith(("http://", "https://", "file://")):
        import urllib.request

        with urllib.request.urlopen(uri, timeout=_TIMEOUT_S) as answer:
            read: bytes = answer.read(_SIZE_BYTES_MAX + 1)
            return read
    if "://" in uri:
        raise ValueError("it is neither http(s) nor file")
    with open(uri, "rb") as file:
        return file.read(_SIZE_BYTES_MAX + 1)


def checked_spec(spec: Any) -> dict[str, Any]:
    """Return a specification if it looks like one; a service that installs it looks closer.

    Raises:
        PairioError: it does not.
    """
    processors = spec.get("processors") if isinstance(spec, dict) else None
    named: list[Any] = [spec, *processors] if isinstance(processors, list) else [None]
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in named):
        raise PairioError("this is no app specification", "it needs `name` and `processors`")
    names = [processor["name"] for processor in named[1:]]
    for name in names:
        if names.count(name) > 1:
            raise PairioError(f"two processors are called {name!r}", "give each its own name")
    found: dict[str, Any] = json.loads(json.dumps(spec))
    return found
