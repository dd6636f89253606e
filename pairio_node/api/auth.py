"""Who may call the API: bearer tokens, one-time links, cookies, Host and Origin."""

import hashlib
import hmac
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from pairio_node.errors import ForbiddenError, UserError

__all__ = ["COOKIE", "Auth"]

COOKIE = "pairio_session"
_LINK_S = 60
_SESSION_S = 30 * 24 * 3600
_TOKENS_MAX = 1000
_LINKS_MAX = 1000
_SESSIONS_MAX = 1000


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _is_token(token: Any) -> bool:
    match token:
        case {"name": str(), "hash": str(), "read_only": bool(), "expires": None | int() | float()}:
            return True
    return False


class Auth:
    """Tokens are kept as hashes (0600); links and sessions live as long as the node."""

    def __init__(self, main_token: str, path: Path, port: int) -> None:
        self._main = _digest(main_token)
        self._path = path
        self._port = port
        self._names = [f"{h}:{port}" for h in ("127.0.0.1", "localhost", "[::1]")]
        self._links: dict[str, tuple[str, float]] = {}
        self._sessions: dict[str, float] = {}

    def _tokens(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        try:
            tokens = json.loads(self._path.read_text())
            if not all(_is_token(token) for token in tokens):
                raise ValueError("not tokens")
            return tokens  # type: ignore[no-any-return]
        except (OSError, ValueError, TypeError):
            raise UserError(
                f"{self._path} is corrupt", hint="move it away and create the tokens again"
            ) from None

    def create_token(self, name: str, read_only: bool, expires_s: int | None) -> str:
        """Return a new token; it is shown this once only."""
        tokens = self._tokens()
        if len(tokens) >= _TOKENS_MAX:
            raise UserError(
                f"there are {_TOKENS_MAX} tokens already", hint=f"take some out of {self._path}"
            )
        token = secrets.token_urlsafe(32)
        expires = None if expires_s is None else time.time() + expires_s
        tokens.append(
            {"name": name, "hash": _digest(token), "read_only": read_only, "expires": expires}
        )
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(tokens, file)
        temporary.rename(self._path)
        return token

    def check_token(self, authorization: str | None, method: str) -> None:
        """Refuse a call whose bearer token does not allow it; compared in constant time.

        Raises:
            UserError: no token, an unknown or an expired one (401).
            ForbiddenError: a read-only one for something else than reading.
        """
        scheme, _, secret = (authorization or "").partition(" ")
        given = _digest(secret.strip()) if scheme.rstrip(":").lower() == "bearer" else ""
        if hmac.compare_digest(given, self._main):
            return
        found: dict[str, Any] | None = None
        for token in self._tokens():
            if hmac.compare_digest(given, token["hash"]):
                found = token
        expires = found["expires"] if found else 0
        if found is None or (expires is not None and time.time() >= expires):
            raise UserError(
                "no token that allows this" if found is None else "this token has expired",
                hint="use the token in api.json of the node's home, or pairio token create",
                code="unauthorized",
                http_status=401,
            )
        if found["read_only"] and method not in ("GET", "HEAD"):
            raise ForbiddenError(
                "this token only reads", hint="pairio token create NAME, without --read-only"
            )

    def check_origin(self, host: str | None, origin: str | None) -> None:
        """Refuse other sites' pages (Origin) and other names for this machine (Host).

        Raises:
            ForbiddenError: one of them is not ours.
        """
        if host not in self._names:
            raise ForbiddenError(
                f"Host is {(host or '')[:100]!r}", hint=f"use http://127.0.0.1:{self._port}"
            )
        if origin is not None and origin not in [f"http://{name}" for name in self._names]:
            raise ForbiddenError("this page may not call the node (Origin)")

    def make_link(self, path: str) -> str:
        """Return the code of a link that opens `path` once, within a minute."""
        if not path.startswith("/") or path.startswith("//") or "\\" in path:
            raise UserError(f"path {path!r} is not of this node", hint="use one such as /job/ID")
        now = time.monotonic()
        self._links = {c: v for c, v in self._links.items() if v[1] > now}
        if len(self._links) >= _LINKS_MAX:
            raise UserError(f"{_LINKS_MAX} links wait to be opened", hint="wait a minute")
        code = secrets.token_urlsafe(24)
        self._links[code] = (path, now + _LINK_S)
        return code

    def use_link(self, code: str) -> tuple[str, str] | None:
        """Return (path, new session) for a code that was not used yet, else None."""
        path, expires = self._links.pop(code, ("", 0.0))
        if time.monotonic() >= expires:
            return None
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = time.monotonic() + _SESSION_S
        while len(self._sessions) > _SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]  # the oldest browser opens anew
        return path, session

    def has_session(self, cookie: str | None) -> bool:
        """Say whether a cookie is that of a live session."""
        return cookie is not None and self._sessions.get(_digest(cookie), 0) > time.monotonic()
