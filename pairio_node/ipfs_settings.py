"""The table `[ipfs]` of node.toml: which Kubo daemon keeps the blocks, and what it is told."""

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pairio_node.errors import UserError

__all__ = ["PUBLISH", "IpfsSettings", "api_multiaddr", "parse_ipfs", "read_token"]

#: Which results are made known: none, those of public services, all.
PUBLISH: Final = ("none", "public", "all")
_EXAMPLES = "http://127.0.0.1:5001, /ip4/127.0.0.1/tcp/5001 or /unix/run/ipfs/api.sock"
_MULTIADDR = re.compile(
    r"/(?:ip4|ip6|dns|dns4|dns6)/(?P<host>[^/]+)/tcp/(?P<port>[0-9]+)(?P<scheme>/https?)?"
)


@dataclass(frozen=True)
class IpfsSettings:
    """Where Kubo's RPC API is, how it is entered, and which results are published through it."""

    #: address of the daemon's RPC API: a URL, a multiaddr (`/ip4/127.0.0.1/tcp/5001`), or a socket
    #: (`/unix/run/ipfs/api.sock`).
    api: str
    multiaddr: str
    #: file of mode 0600 with one line, the bearer token of the daemon's `API.Authorizations`.
    #: Default: no token.
    token_file: str = ""
    #: which results the daemon makes known: `none`, `public` (those that everybody may have),
    #: `all`. Default: `public`.
    publish: str = "public"


def parse_ipfs(raw: Any) -> IpfsSettings:
    """Return the settings of a table, or of an address alone; raises UserError."""
    if isinstance(raw, str):
        raw = {"api": raw}
    known = ("api", "token_file", "publish")
    if not isinstance(raw, dict) or any(not isinstance(v, str) for v in raw.values()):
        raise UserError(f"setting ipfs is {raw!r}", hint=f"a table of texts: {', '.join(known)}")
    if unknown := sorted(set(raw) - set(known)):
        raise UserError(f"unknown setting ipfs.{unknown[0]}", hint=f"known: {', '.join(known)}")
    if "api" not in raw:
        raise UserError("[ipfs] names no daemon", hint=f'give it api = "{_EXAMPLES.split(",")[0]}"')
    if raw.get("publish", "public") not in PUBLISH:
        raise UserError(f"setting ipfs.publish is {raw['publish']!r}", hint="none, public or all")
    return IpfsSettings(multiaddr=api_multiaddr(raw["api"]), **raw)


def api_multiaddr(address: str) -> str:
    """Return the multiaddr of an RPC API given as URL, multiaddr, or `/unix/PATH`."""
    wrong = UserError(f"{address!r} is not the address of a Kubo daemon", hint=f"use {_EXAMPLES}")
    if address.startswith("/unix/"):
        if len(address) <= len("/unix/"):
            raise wrong
        return address
    if match := _MULTIADDR.fullmatch(address):
        if not 0 < int(match["port"]) < 65536:
            raise wrong
        return address
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port
    except ValueError:
        raise wrong from None
    path_is_right = url.path.rstrip("/") in ("", "/api/v0")
    if url.scheme not in ("http", "https") or not host or not path_is_right:
        raise wrong
    if url.username or url.password:
        raise UserError(
            "the address of the Kubo daemon holds a password",
            hint="put a bearer token into a file of mode 0600, and name it as ipfs.token_file",
        )
    if url.query or url.fragment or (port is None and url.scheme == "http"):
        raise wrong
    kind = "ip6" if ":" in host else "ip4" if re.fullmatch(r"[0-9.]+", host) else "dns"
    return f"/{kind}/{host}/tcp/{port or 443}/{url.scheme}"


def read_token(settings: IpfsSettings) -> str:
    """Return the bearer token, or "" when none is set; it is never said to anybody."""
    if not settings.token_file:
        return ""
    path = Path(settings.token_file).expanduser()
    try:
        mode = path.stat().st_mode
        token = path.read_text().strip().removeprefix("bearer:")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the token of the Kubo daemon: {error}", hint="mend ipfs.token_file"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(
            f"others on this machine can read {path}",
            hint=f"chmod 600 {path}, and make a new token",
        )
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"{path} holds no token", hint="one line: the token")
    return token
