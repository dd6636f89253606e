"""How content is served: with which headers, and under which type, by its name alone.

The types are a list of our own, since what the system's table says differs from machine to
machine. What a browser could run or embed as more than data (scripts, styles, XML) is plain text;
what is not listed is bytes to be saved. HTML and SVG keep their types: the sandbox of the answer
makes them harmless.
"""

from typing import Final
from urllib.parse import quote

from starlette.requests import Request

__all__ = ["CONTENT_HEADERS", "disposition_of", "is_known", "type_of"]

#: Whatever the bytes are, they do not act: no script, no plugin, no form, nothing loaded from
#: anywhere, an origin of their own in every document; the URL, which is a capability, is not told
#: to whoever a link in them leads to. (No Cross-Origin-Opener-Policy: browsers refuse it together
#: with a sandbox.)
CONTENT_HEADERS: Final = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:;"
        " media-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_BYTES: Final = "application/octet-stream"
_TEXT: Final = "text/plain; charset=utf-8"
_TEXT_SUFFIXES = (
    "bash bib c cc cfg conf cpp css csv diff dot err f90 fa fasta fastq geojson go h hpp ini ipynb"
    " java js jsonl jl log m md mjs nf ndjson out patch py pyi r rs rst sam sh smk sql svelte tex"
    " toml ts tsv txt vcf xml xsd xsl yaml yml"
)
_TYPES: Final = {
    **dict.fromkeys(_TEXT_SUFFIXES.split(), _TEXT),
    "avif": "image/avif",
    "bmp": "image/bmp",
    "flac": "audio/flac",
    "gif": "image/gif",
    "htm": "text/html; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "m4a": "audio/mp4",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "oga": "audio/ogg",
    "ogg": "audio/ogg",
    "ogv": "video/ogg",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webp": "image/webp",
}


def is_known(request: Request, tag: str) -> bool:
    """Say whether the client has this version already (If-None-Match; compared weakly)."""
    given = request.headers.get("if-none-match", "")
    tags = [text.strip().removeprefix("W/") for text in given.split(",")]
    return given.strip() == "*" or tag.removeprefix("W/") in tags


def type_of(name: str) -> str:
    """Return the content type for a file's name."""
    _, dot, suffix = name.rpartition(".")
    return _TYPES.get(suffix.lower(), _BYTES) if dot else _BYTES


def disposition_of(name: str, kind: str) -> str:
    """Return `Content-Disposition`: shown when its type is listed, else saved; with the name."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-") else "_" for c in name)
    how = "attachment" if kind == _BYTES else "inline"
    # Old clients read the first, others the second (RFC 6266).
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
