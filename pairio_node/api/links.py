"""URLs for people: job pages, and capabilities for content on an origin of its own."""

import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import quote

__all__ = ["Links"]


class Links:
    """Makes and checks URLs. Only the HMAC of CID and name in a content URL opens it."""

    def __init__(self, api_port: int, gateway_port: int, key: bytes) -> None:
        self._api_port = api_port
        self._gateway_port = gateway_port
        self._key = key

    def job_page(self, job_id: str, service: str | None = None) -> str:
        """Return the URL of a job's page."""
        return f"http://127.0.0.1:{self._api_port}/job/{job_id}"

    def content(self, cid: str, name: str) -> str:
        """Return the capability URL of some content."""
        path = self.below(cid, name, ())
        return f"http://127.0.0.1:{self._gateway_port}{path}?k={self._mac(cid, name)}"

    def below(self, cid: str, name: str, path: Sequence[str]) -> str:
        """Return the path of the URL of what lies at `path` in a folder that has a capability."""
        return "/".join(["/ipfs", cid, *(quote(part, safe="") for part in (name, *path))])

    def _mac(self, cid: str, name: str) -> str:
        return hmac.new(self._key, f"{cid}\0{name}".encode(), hashlib.sha256).hexdigest()[:32]

    def is_valid(self, cid: str, name: str, key: str) -> bool:
        """Say whether a capability is one of ours (constant time)."""
        return hmac.compare_digest(self._mac(cid, name).encode(), key.encode(errors="replace"))
