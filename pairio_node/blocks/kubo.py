"""What is said to a Kubo daemon over its RPC API: the one place that knows ipfshttpclient.

Every call is for code that runs in a thread, ends within its time (on both sides), and may be
made from many threads: each uses a client of its own, of which there are CLIENTS_MAX. Nothing is
followed elsewhere: no proxy, no redirect, no .netrc. Every CID that a daemon returns is parsed,
whatever its base, and compared with the one computed here.

Reference: https://docs.ipfs.tech/reference/kubo/rpc/
"""

import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

import ipfshttpclient
import libipld
import requests
from ipfshttpclient import exceptions as ipfs

from pairio_node.blocks.base import BlockCorrupt, BlockMissing, StoreUnavailable
from pairio_node.errors import UserError
from pairio_node.ipfs_settings import IpfsSettings, read_token
from pairio_protocol.cid import DAG_CBOR, DAG_PB, RAW, parse_cid

__all__ = ["CLIENTS_MAX", "VERSION_MIN", "KuboApi", "KuboError", "Provider", "is_same_cid"]

#: `provide/once` exists since then, and pins do not wait for the announcements of a whole cycle.
VERSION_MIN: Final = (0, 42)
CLIENTS_MAX: Final = 8
_CONNECT_S: Final = 3.0
#: A daemon that lets one call wait so long is taken for gone.
CALL_S: Final = 30.0
#: How long a daemon that is gone is not asked again; then one call tries.
REST_S: Final = 1.0
_LINE_BYTES_MAX: Final = 2**16
#: The event of a routing query that names providers.
_PROVIDER: Final = 4
_ADDRESSES_MAX: Final = 16
_CODEC_NAMES: Final = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor"}
_EDGE: Final = "pairio-1f0c9d5e8b7a4c62"


class Provider(NamedTuple):
    """Who says that he has a block, and where he is: multiaddrs without the peer id."""

    peer: str
    addresses: tuple[str, ...]


class KuboError(UserError):
    """The daemon is there, and answers that it did not do it."""

    default_code, default_status = "ipfs", 502


def is_same_cid(text: Any, cid: str) -> bool:
    """Say whether a CID as a daemon writes it (any base) is the one computed here."""
    try:
        found = libipld.decode_cid(text)
    except (ValueError, TypeError):
        return False
    mine = parse_cid(cid)
    is_sha2_256 = found["hash"]["code"] == 0x12
    return is_sha2_256 and (found["codec"], found["hash"]["digest"]) == (mine.codec, mine.digest)


class KuboApi:
    """A daemon. Raises StoreUnavailable when it is gone, KuboError when it refuses."""

    def __init__(self, settings: IpfsSettings) -> None:
        self.address = settings.api
        self._multiaddr = settings.multiaddr
        token = read_token(settings)
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(CLIENTS_MAX):
            self._idle.put(None)
        self._lock = threading.Lock()
        self._down: tuple[str, float] | None = None  # why, and when it was seen last
        self._foreign = ""
        self.version = ""

    # -- one call ------------------------------------------------------------------------

    @property
    def why_down(self) -> str:
        """Why the daemon does not answer; "" while it does."""
        down = self._down
        return self._foreign or (down[0] if down else "")

    def expect(self, peer_id: str) -> None:
        """Ask who answers; while it is not this daemon, it is taken for gone."""
        words = f"another Kubo daemon answers at {self.address}; start the node again to use it"
        self._foreign = "" if self.peer_id() == peer_id else words

    def call(
        self,
        path: str,
        *args: str,
        opts: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float = CALL_S,
    ) -> bytes:
        """POST to `/api/v0/PATH` and return the answer's bytes."""
        if self._foreign and path != "id":
            raise StoreUnavailable(self._foreign)
        with self._client(timeout_s) as client, self._in_words(timeout_s):
            return self._request(client, path, args, opts or {}, body, timeout_s)

    def call_json(self, path: str, *args: str, **more: Any) -> Any:
        """The same for an answer that is one JSON document."""
        return self._json(self.call(path, *args, **more))

    def lines(
        self, path: str, *args: str, opts: Mapping[str, str], timeout_s: float
    ) -> Iterator[Any]:
        """Yield the JSON documents of an answer that comes line by line, for at most `timeout_s`;
        close the iterator to end it earlier."""
        ends = time.monotonic() + timeout_s
        with self._client(timeout_s) as client, self._in_words(timeout_s, may_end=True):
            stream = client._client.request(
                path,
                args,
                opts={**opts, "timeout": f"{timeout_s:.3f}s"},
                stream=True,
                timeout=(_CONNECT_S, timeout_s + 5),
            )
            pending = b""
            with stream:
                for piece in stream:
                    *whole, pending = (pending + piece).split(b"\n")
                    if len(pending) > _LINE_BYTES_MAX or time.monotonic() > ends:
                        return
                    yield from (self._json(line) for line in whole if line.strip())

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data or b"null")
        except ValueError:
            raise self._not_kubo("") from None

    @staticmethod
    def _request(
        client: Any,
        path: str,
        args: tuple[str, ...],
        opts: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
    ) -> bytes:
        headers = data = None
        if body is not None:
            headers = {"Content-Type": f"multipart/form-data; boundary={_EDGE}"}
            head = f'--{_EDGE}\r\nContent-Disposition: form-data; name="data"; filename="data"\r\n'
            head += "Content-Type: application/octet-stream\r\n\r\n"
            data = b"".join((head.encode(), body, f"\r\n--{_EDGE}--\r\n".encode()))
        asked = {**opts, "timeout": f"{timeout_s:.3f}s"}
        more = {"data": data, "headers": headers, "timeout": (_CONNECT_S, timeout_s + 1)}
        answer: bytes
        try:
            answer = client._client.request(path, args, opts=asked, **more)
        except ipfs.ProtocolError:  # a kept connection of before a restart; calls may be repeated
            client._client._session.close()
            answer = client._client.request(path, args, opts=asked, **more)
        return answer

    @contextmanager
    def _client(self, timeout_s: float) -> Iterator[Any]:
        """Lend a client; one whose call failed is replaced, since its connection may be dead."""
        self._rest()
        try:
            client = self._idle.get(timeout=timeout_s)
        except queue.Empty:
            raise self._gone(f"is busy: no answer within {timeout_s:g} s") from None
        keep = None
        try:
            client = client or self._new_client()
            yield client
            keep = client
        finally:
            if keep is None and client is not None:
                client.close()
            self._idle.put(keep)

    def _new_client(self) -> Any:
        client = ipfshttpclient.Client(self._multiaddr, session=True, headers=self._headers)
        session = client._client._session
        session.trust_env = False  # no proxy of the environment, and no .netrc, sees the token
        session.max_redirects = 0
        for adapter in session.adapters.values():  # urllib3 2 warns of it, and 3 refuses it
            adapter.poolmanager.connection_pool_kw.pop("strict", None)
        return client

    def _rest(self) -> None:
        """Raise at once while the daemon is known to be gone, but for one try every REST_S."""
        with self._lock:
            if self._down is None:
                return
            why, at = self._down
            if time.monotonic() - at >= REST_S:
                self._down = (why, time.monotonic())
                return
        raise StoreUnavailable(why)

    def _gone(self, why: str) -> StoreUnavailable:
        words = f"the Kubo daemon at {self.address} {why}"
        with self._lock:
            self._down = (words, time.monotonic())
        return StoreUnavailable(words)

    @contextmanager
    def _in_words(self, timeout_s: float, may_end: bool = False) -> Iterator[None]:
        """Turn what a call raises into StoreUnavailable or KuboError, and note who answers.
        `may_end`: the daemon is to end the call when its time is over."""
        try:
            yield
        except ipfs.TimeoutError:
            raise self._gone(f"gave no answer within {timeout_s:g} s") from None
        except ipfs.ErrorResponse as error:  # a daemon that says no is there
            self._down = None
            is_over = "timed out" in str(error) or "deadline exceeded" in str(error)
            if may_end and is_over:
                return
            if is_over:
                raise self._gone(f"gave no answer within {timeout_s:g} s") from None
            raise KuboError(f"the Kubo daemon at {self.address} says: {error}") from None
        except ipfs.StatusError as error:
            raise self._refusal(error) from None
        except (ipfs.CommunicationError, requests.RequestException, OSError) as error:
            raise self._gone(f"cannot be reached ({_short(error)})") from None
        except UnboundLocalError:  # ipfshttpclient's, when it cannot make a session
            raise self._gone("cannot be reached") from None
        self._down = None

    def _refusal(self, error: Any) -> UserError:
        status = getattr(getattr(error.original, "response", None), "status_code", 0)
        if status in (401, 403):
            return KuboError(
                f"the Kubo daemon at {self.address} refuses this node ({status})",
                hint="name a file with a token of its API.Authorizations as ipfs.token_file",
                code="ipfs_refused",
            )
        return self._not_kubo(f" (status {status})")

    def _not_kubo(self, why: str) -> KuboError:
        return KuboError(
            f"what answers at {self.address} is no Kubo daemon{why}",
            hint="give the address of its RPC API, usually http://127.0.0.1:5001",
            code="ipfs_not_kubo",
        )

    # -- blocks --------------------------------------------------------------------------

    def check(self) -> str:
        """Return the daemon's version once it is known to be new enough and to let this node in;
        raises UserError with what to do."""
        found = self.call_json("version", timeout_s=5)
        self.version = str(found.get("Version", "")) if isinstance(found, dict) else ""
        numbers = self.version.partition("-")[0].split(".")
        if len(numbers) < 2 or not all(n.isdigit() for n in numbers[:2]):
            raise self._not_kubo("")
        if (int(numbers[0]), int(numbers[1])) < VERSION_MIN:
            least = ".".join(map(str, VERSION_MIN))
            raise KuboError(
                f"the Kubo daemon at {self.address} is {self.version}; {least} is the least",
                hint="update Kubo, or run without --ipfs",
                code="ipfs_too_old",
            )
        self.make_folder("/pairio")
        return self.version

    def peer_id(self) -> str:
        """Return the daemon's peer id: another daemon has other blocks."""
        found = self.call_json("id", timeout_s=5)
        return str(found.get("ID", "")) if isinstance(found, dict) else ""

    def swarm(self) -> tuple[str, tuple[str, ...]]:
        """Return the daemon's peer id, and where other peers reach it."""
        found = self.call_json("id", timeout_s=5)
        known = found if isinstance(found, dict) else {}
        addresses = [str(a).partition("/p2p/")[0] for a in known.get("Addresses") or ()]
        return str(known.get("ID", "")), tuple(addresses)

    def block_size(self, cid: str) -> int | None:
        """Return the bytes of a block that the daemon has, else None; it asks nobody else."""
        try:
            found = self.call_json("block/stat", cid, opts={"offline": "true"})
        except KuboError as error:
            if _is_missing(error):
                return None
            raise
        is_right = isinstance(found, dict) and is_same_cid(found.get("Key"), cid)
        size = found.get("Size") if is_right else None
        return size if isinstance(size, int) else None

    def read_block(self, cid: str) -> bytes:
        """Return a block that the daemon has; raises BlockMissing."""
        try:
            return self.call("block/get", cid, opts={"offline": "true"})
        except KuboError as error:
            if _is_missing(error):
                raise BlockMissing(cid) from None
            raise

    def put_block(self, cid: str, data: bytes) -> None:
        """Store a block byte by byte, unpinned."""
        codec = _CODEC_NAMES[parse_cid(cid).codec]
        opts = {"cid-codec": codec, "mhtype": "sha2-256", "pin": "false", "cid-base": "base32"}
        opts |= {"allow-big-block": "true"} if len(data) > 2**20 else {}
        found = self.call_json("block/put", opts=opts, body=data)
        if not isinstance(found, dict) or not is_same_cid(found.get("Key"), cid):
            raise BlockCorrupt(f"the daemon at {self.address} stored another block than {cid}")

    # -- MFS -----------------------------------------------------------------------------

    def make_folder(self, path: str) -> None:
        """Make a folder of MFS, and those above it."""
        self.call("files/mkdir", path, opts={"parents": "true", "cid-version": "1"})
        self.flush()

    def link(self, cid: str, path: str) -> None:
        """Let a path of MFS be a folder or raw block that the daemon has; written at once."""
        self.call("files/cp", f"/ipfs/{cid}", path, opts={"parents": "true", "offline": "true"})

    def unlink(self, path: str) -> None:
        """Remove a path of MFS with all below it; nothing when there is none."""
        try:
            self.call("files/rm", path, opts={"recursive": "true", "force": "true"})
        except KuboError as error:
            if not _is_missing(error):
                raise
        self.flush()

    def flush(self) -> None:
        """Return when the daemon has written where MFS begins. After `rm` and `mkdir` it has not
        (0.43): a collection takes the old beginning, and a crash then costs the whole MFS."""
        self.call("files/flush", "/")

    def list_files(self, path: str) -> list[tuple[str, int]]:
        """Return the names in a folder of MFS, with sizes; empty when there is no such folder."""
        try:
            found = self.call_json("files/ls", path, opts={"long": "true", "offline": "true"})
        except KuboError as error:
            if _is_missing(error):
                return []
            raise
        try:
            return [(str(e["Name"]), int(e["Size"])) for e in found["Entries"] or []]
        except (KeyError, TypeError, ValueError):
            raise self._not_kubo("") from None

    def write_file(self, path: str, data: bytes) -> None:
        """Write a small file of MFS, in place of one that is there."""
        opts = {"create": "true", "truncate": "true", "parents": "true"}
        self.call(
            "files/write", path, opts=opts | {"raw-leaves": "true", "cid-version": "1"}, body=data
        )
        self.flush()

    # -- making known --------------------------------------------------------------------

    def strategy(self) -> str:
        """Return what the daemon announces of what it has (`Provide.Strategy`)."""
        try:
            found = self.call_json("config", "Provide.Strategy", timeout_s=5)
        except KuboError:
            return "all"  # not set
        return str((found or {}).get("Value") or "all")

    def pin(self, cid: str) -> None:
        """Pin what lies below a CID and is here whole; raises BlockMissing when it is not."""
        opts = {"recursive": "true", "name": "pairio", "offline": "true", "progress": "false"}
        try:
            self.call("pin/add", cid, opts=opts)
        except KuboError as error:
            if _is_missing(error):
                raise BlockMissing(f"{cid} is not in the daemon whole") from None
            raise

    def unpin(self, cid: str) -> None:
        """Undo `pin`; nothing when it is not pinned."""
        try:
            self.call("pin/rm", cid)
        except KuboError as error:
            if "not pinned" not in error.message:
                raise

    def provide(self, cid: str, timeout_s: float) -> None:
        """Tell the daemon's network that it has a block. Raises KuboError while it is connected
        with nobody."""
        self.call("provide/once", cid, timeout_s=timeout_s)

    def providers(self, cid: str, count: int, timeout_s: float) -> list[Provider]:
        """Ask the daemon's network who has a block: at most `count`, for at most `timeout_s`. What
        they are is their own word."""
        found: dict[str, Provider] = {}
        opts = {"num-providers": str(count)}
        events = self.lines("routing/findprovs", cid, opts=opts, timeout_s=timeout_s)
        with closing(events):  # type: ignore[type-var]
            for event in events:
                if not isinstance(event, dict) or event.get("Type") != _PROVIDER:
                    continue
                for said in event.get("Responses") or []:
                    addresses = tuple(map(str, said.get("Addrs") or ()))[:_ADDRESSES_MAX]
                    found.setdefault(str(said.get("ID")), Provider(str(said.get("ID")), addresses))
                if len(found) >= count:
                    break
        return list(found.values())[:count]


def _is_missing(error: KuboError) -> bool:
    known = ("not found", "could not find", "does not exist")
    return any(words in error.message for words in known)


def _short(error: BaseException) -> str:
    words = str(error)
    for known in (
        "Connection refused",
        "Connection reset",
        "Connection aborted",  # it ended while it answered
        "No such file",
        "Name or service not known",
        "timed out",
    ):
        if known.lower() in words.lower():
            return known.lower()
    return words[:120] or type(error).__name__
