"""Inputs by URL: fetched by the node that computes, under its owner's rules.

A URL comes from whoever may submit; this node must not be made to read with it what only this
machine or its network can reach. `approve` is the guard: a host is resolved once, every address it
has must be a public one, and the connection goes to an address that was looked at. Each redirect
is a URL of its own. Hosts that the owner names in `allow_hosts` are not held to it.
"""

import hashlib
import http.client
import math
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

import psutil
import trio

from pairio_node.errors import ForbiddenError, UserError
from pairio_protocol.limits import URL_LENGTH_MAX

__all__ = [
    "ADDRESSES_TRIED_MAX",
    "CONNECT_S",
    "READ_S",
    "REDIRECTS_MAX",
    "REDIRECT_STATUS",
    "STALL_BYTES",
    "Fetched",
    "Resolve",
    "Target",
    "UrlError",
    "UrlForbiddenError",
    "UrlRules",
    "approve",
    "fetch_url",
    "printable",
    "redirected",
    "resolve_host",
    "short_url",
    "split_url",
]

REDIRECTS_MAX = 5
ADDRESSES_TRIED_MAX = 4
_RESOLVE_S = 10.0
CONNECT_S = 10.0
READ_S = 30.0
#: What a server must send at least in `stall_s`.
STALL_BYTES = 64 * 1024
_CHUNK_BYTES = 256 * 1024
REDIRECT_STATUS = (301, 302, 303, 307, 308)
#: What a path and a query may hold as it is.
_SAFE = "/%:@!$&'()*+,;=~-._?[]"
_NAT64 = IPv6Network("64:ff9b::/96")
#: Not public, though `is_global` takes them for it.
_NOT_PUBLIC = tuple(
    map(ip_network, ("192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10", "3fff::/20", "5f00::/16"))
)
#: The metadata service of one cloud has a public address.
_METADATA = (IPv4Address("168.63.129.16"),)


class UrlError(UserError):
    """The URL was not fetched: why, and what to do."""


class UrlForbiddenError(UrlError, ForbiddenError):
    """The rules of this node's owner are against it; another node may fetch it."""


@dataclass(frozen=True)
class Fetched:
    """What was fetched; `etag` and `modified` are "" where the server gave none."""

    size_bytes: int
    etag: str
    sha256_hex: str
    modified: str = ""


@dataclass(frozen=True)
class Target:
    """Whom a URL names and what is asked for there. `host` is ASCII, in small letters."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"


Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, int], Awaitable[socket.socket]]


def _own_addresses() -> frozenset[str]:
    """Return the addresses of this machine's interfaces."""
    found = psutil.net_if_addrs().values()
    kinds = (socket.AF_INET, socket.AF_INET6)
    return frozenset(
        a.address.partition("%")[0] for addresses in found for a in addresses if a.family in kinds
    )


@dataclass(frozen=True)
class UrlRules:
    """What the owner of this node lets jobs read by URL. `allow_hosts` are hosts or host:port that
    may have any address; `stall_s` is how long a server may take to send next to nothing."""

    allow_hosts: tuple[str, ...] = ()
    bytes_max: int = 20 * 2**30
    stall_s: float = 60.0
    own: Callable[[], frozenset[str]] = _own_addresses
    #: Not those that hashing and the disk use: servers may be slow.
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(40))

    def allows(self, target: Target) -> bool:
        """Say whether the owner named this host."""
        host = f"[{target.host}]" if ":" in target.host else target.host
        named = {entry.lower() for entry in self.allow_hosts}
        return not named.isdisjoint({target.host, host, f"{host}:{target.port}"})


async def fetch_url(
    url: str,
    destination: Path,
    rules: UrlRules,
    resolve: Resolve | None = None,
    connect: Connect | None = None,
) -> Fetched:
    """Fetch a URL into a new file. Nothing is left of it when that fails or is cancelled.

    Raises:
        UrlForbiddenError: the owner's rules are against it.
        UrlError: it cannot be had.
    """
    resolve, connect = resolve or resolve_host, connect or _connect
    following = url
    for _ in range(REDIRECTS_MAX + 1):
        target = split_url(following)
        addresses = await approve(target, rules, resolve)
        exchange = _Exchange(target, rules, destination)
        await exchange.open(addresses, connect)
        answer = await exchange.run()
        if isinstance(answer, Fetched):
            return answer
        following = answer
    raise UrlError(
        f"{short_url(url)} is redirected more than {REDIRECTS_MAX} times",
        hint="give the URL at the end of the redirects",
    )


# -- the guard ----------------------------------------------------------------------------


def split_url(url: str) -> Target:
    """Take a URL apart.

    Raises:
        UrlError: it is not one that is fetched, whatever the node.
    """
    if any(ord(c) <= 32 or ord(c) == 127 or c == "\\" for c in url):
        raise UrlError(f"{short_url(url)} holds a blank, a control character or a backslash")
    if len(url) > URL_LENGTH_MAX:
        raise UrlError(f"{short_url(url)} has {len(url)} characters; at most {URL_LENGTH_MAX}")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        host = host if ":" in host else host.encode("idna").decode("ascii").lower()
    except ValueError as error:  # UnicodeError is one
        raise UrlError(f"{short_url(url)} is no URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise UrlError(
            f"{short_url(url)} has the scheme {parts.scheme[:20]!r}", hint="use an http(s) URL"
        )
    if "@" in parts.netloc:
        raise UrlError(
            f"a URL of {host[:100]} holds a user or a password",
            hint="every member of the service would read it: add the file and give its CID",
        )
    if not host or port == 0 or "%" in host:
        raise UrlError(f"{short_url(url)} names no host or port", hint="write http(s)://HOST/PATH")
    path = quote(parts.path or "/", safe=_SAFE)
    query = f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
    usual = 443 if parts.scheme == "https" else 80
    return Target(url, parts.scheme, host, port or usual, path + query)


def redirected(target: Target, location: str) -> str:
    """Return the URL that a server's redirect leads to.

    Raises:
        UrlError: its words are no URL.
    """
    try:
        return urljoin(target.url, location)
    except ValueError as error:
        raise UrlError(
            f"{short_url(target.url)}: redirected to what is no URL: {printable(str(error)[:200])}",
            hint="submit again when it can be had",
        ) from None


async def approve(target: Target, rules: UrlRules, resolve: Resolve) -> Sequence[str]:
    """Resolve a target's host, once, and return its addresses: connect to these alone.

    Raises:
        UrlForbiddenError: one of them is not public, and the owner has not named the host.
        UrlError: it has none.
    """
    try:
        with trio.fail_after(_RESOLVE_S):
            addresses = tuple(dict.fromkeys(await resolve(target.host, target.port)))
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        why = f"no answer in {_RESOLVE_S:.0f} s" if isinstance(error, trio.TooSlowError) else error
        raise UrlError(
            f"{short_url(target.url)}: cannot resolve {target.host[:100]!r}: {why}",
            hint="check the name",
        ) from None
    if not addresses:
        raise UrlError(f"{short_url(target.url)}: {target.host[:100]!r} has no address")
    if rules.allows(target):
        return addresses
    own = frozenset(_inner(ip_address(a)) for a in rules.own())
    for text in addresses:
        why = _objection(text, own)
        if why:
            raise UrlForbiddenError(
                f"{short_url(target.url)} is not fetched on this node: {text} is {why}",
                hint=f"its owner may put {target.host[:100]!r} into allow_hosts in node.toml; or"
                " add the file and give its CID",
            )
    return addresses


def _objection(text: str, own: frozenset[IPv4Address | IPv6Address]) -> str:
    """Return what an address is that nobody but the owner may open up, or "" for a public one."""
    try:
        address = _inner(ip_address(text.partition("%")[0]))
    except ValueError:
        return "no address"
    in_words = (
        (address.is_loopback, "a loopback address"),
        (address.is_unspecified, "the unspecified address"),
        (address.is_link_local, "a link-local address"),
        (address.is_multicast, "a multicast address"),
        (address in _METADATA, "the address of a metadata service"),
        (address.is_reserved, "a reserved address"),
        (not address.is_global, "no public address"),
        (any(address in network for network in _NOT_PUBLIC), "no public address"),
        (address in own, "an address of this node"),
    )
    return next((words for holds, words in in_words if holds), "")


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def short_url(url: str) -> str:
    """Return a URL for people: what precedes an `@` or follows a `?` may be a secret."""
    head, query, _ = re.sub("//[^/?#]*@", "//", url).partition("?")
    head = printable(head)
    return (head if len(head) <= 120 else f"{head[:117]}...") + ("?..." if query else "")


def printable(text: str) -> str:
    """Return a server's words without what a terminal obeys."""
    return "".join(c if c.isprintable() else "?" for c in text)


# -- the network --------------------------------------------------------------------------


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, by the system's resolver."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def _connect(address: str, port: int) -> socket.socket:
    """Connect to an address, not a name; the socket blocks."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_STREAM) as opened:
        await opened.connect((address, port))
        connected = socket.socket(fileno=opened.detach())
    connected.settimeout(READ_S)
    return connected


class _Exchange:
    """One request and its answer. HTTP is spoken in a thread, which ends when the socket is shut
    from here: when the caller is cancelled, or the server sends next to nothing."""

    def __init__(self, target: Target, rules: UrlRules, destination: Path) -> None:
        self._target, self._rules, self._destination = target, rules, destination
        self._url = short_url(target.url)
        self._socket: socket.socket
        self._size_bytes = 0
        self._made_file = False
        self._is_shut = False
        self._stalled = False

    async def open(self, addresses: Sequence[str], connect: Connect) -> None:
        """Connect to the first address that answers."""
        why = ""
        for address in addresses[:ADDRESSES_TRIED_MAX]:
            try:
                with trio.fail_after(CONNECT_S):
                    self._socket = await connect(address, self._target.port)
                return
            except trio.TooSlowError:
                why = f"no answer in {CONNECT_S:.0f} s"
            except OSError as error:
                why = error.strerror or str(error)
        raise UrlError(f"{self._url}: cannot connect: {why}", hint="submit again when it can")

    async def run(self) -> Fetched | str:
        """Return what was fetched, or the URL of a redirect."""
        answer: Fetched | str | UrlError = self._bad("canceled")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                answer = await trio.to_thread.run_sync(self._talk, limiter=self._rules.threads)
                nursery.cancel_scope.cancel()
            if self._stalled:
                answer = self._bad(f"the server sent next to nothing for {self._rules.stall_s:g} s")
            if isinstance(answer, UrlError):
                raise answer
            return answer
        except BaseException:
            if self._made_file:
                self._destination.unlink()
            raise
        finally:
            self._socket.close()

    async def _watch(self) -> None:
        try:
            before = -math.inf
            while self._size_bytes - before >= STALL_BYTES:
                before = self._size_bytes
                await trio.sleep(self._rules.stall_s)
            self._stalled = True
        finally:
            self._is_shut = True
            with suppress(OSError):  # it is closed by its other end
                # Not the method of an SSLSocket, which takes its state away from the thread.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _bad(self, why: str) -> UrlError:
        # Some of it are the server's words, which a terminal must not obey.
        return UrlError(f"{self._url}: {printable(why)}", hint="submit again when it can be had")

    def _talk(self) -> Fetched | str | UrlError:
        try:
            return self._ask()
        except UrlError as error:
            return error
        except ssl.SSLCertVerificationError as error:
            return self._bad(f"its certificate is refused: {error.verify_message}")
        except (OSError, http.client.HTTPException) as error:
            return self._bad(f"the transfer broke off: {str(error)[:200] or type(error).__name__}")

    def _ask(self) -> Fetched | str:
        target = self._target
        if target.scheme == "https":
            context = ssl.create_default_context()
            self._socket = context.wrap_socket(
                self._socket,
                server_hostname=target.host,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,  # else a cut is taken for the end
            )
            if self._is_shut:
                raise OSError("canceled")
            self._socket.do_handshake()
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.auto_open = 0  # never to another address than the one that was looked at
        connection.sock = self._socket
        connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
        for name, value in (
            ("Host", target.authority),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "pairio"),
            ("Connection", "close"),
        ):
            connection.putheader(name, value)
        connection.endheaders()
        with connection.getresponse() as response:
            location = response.headers.get("Location")
            if response.status in REDIRECT_STATUS and location:
                return redirected(target, location)
            if response.status != 200:
                reason = response.reason[:100]
                raise self._bad(f"the server answers {response.status} {reason}".rstrip())
            with self._destination.open("xb") as file:
                self._made_file = True
                return self._read(response, file)

    def _read(self, response: http.client.HTTPResponse, file: BinaryIO) -> Fetched:
        length, most = response.length, self._rules.bytes_max
        digest = hashlib.sha256()
        if length is not None and length > most:
            raise self._too_large(f"has {length} bytes")
        while length is None or self._size_bytes < length:
            # Not `read`, which waits for all of it: the watch wants to see it come.
            room = _CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length - self._size_bytes)
            chunk = response.read1(room)
            if not chunk:
                break
            self._size_bytes += len(chunk)
            if self._size_bytes > most:
                raise self._too_large("has more bytes")
            digest.update(chunk)
            file.write(chunk)
        if length is not None and self._size_bytes != length:
            raise self._bad(f"it ended after {self._size_bytes} of {length} bytes")
        if self._is_shut:
            raise OSError("canceled")
        etag = printable(response.headers.get("ETag", "")[:200])
        modified = printable(response.headers.get("Last-Modified", "")[:100])
        return Fetched(self._size_bytes, etag, digest.hexdigest(), modified)

    def _too_large(self, what: str) -> UrlForbiddenError:
        return UrlForbiddenError(
            f"{self._url} {what}; this node fetches at most {self._rules.bytes_max}",
            hint="its owner may raise url_input_bytes_max in node.toml; or add the file and give"
            " its CID",
        )
