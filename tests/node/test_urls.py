"""Inputs by URL: what the guard refuses before anything is connected to, and what is fetched."""

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pairio_node.errors import UserError
from pairio_node.urls import (
    Fetched,
    UrlError,
    UrlForbiddenError,
    UrlRules,
    approve,
    fetch_url,
    split_url,
)

TEXT = b"hello, URL\n" * 1000
OWN = "93.184.216.7"
RULES = UrlRules(own=lambda: frozenset({OWN, "2606:4700::77", "192.168.1.5"}))


class Resolver:
    """Answers with the given addresses, one tuple a question, the last again and again."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


async def _never(address: str, port: int) -> socket.socket:
    raise AssertionError(f"connected to {address}:{port}")


class Server:
    """A web server on loopback; `answers` by path: what a handler does."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        self.hosts: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.hosts.append(self.headers["Host"])
                with suppress(OSError):  # the client went away
                    outer.answers[self.path](self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    @property
    def rules(self) -> UrlRules:
        return replace(RULES, allow_hosts=(f"127.0.0.1:{self.port}",))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def gives(
        self, path: str, body: bytes, status: int = 200, length: int | None = -1, **headers: str
    ) -> None:
        """Answer with a body; `length`: what is said of it (-1: the truth, None: nothing)."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            if length is not None:
                handler.send_header("Content-Length", str(len(body) if length < 0 else length))
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = answer


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.thread.start()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


# -- the guard ----------------------------------------------------------------------------

ADDRESSES = [
    # what the name is, what the resolver says, what is said of it
    ("http://localhost/", "127.0.0.1", "a loopback address"),
    ("http://127.0.0.1:8080/x", "127.0.0.1", "a loopback address"),
    ("http://2130706433/", "127.0.0.1", "a loopback address"),
    ("http://0x7f000001/", "127.0.0.1", "a loopback address"),
    ("http://017700000001/", "127.0.0.1", "a loopback address"),
    ("http://127.1/", "127.0.0.1", "a loopback address"),
    ("http://127.255.255.254/", "127.255.255.254", "a loopback address"),
    ("http://[::1]/", "::1", "a loopback address"),
    ("http://LOCALHOST./", "127.0.0.1", "a loopback address"),
    ("https://evil.example/", "10.0.0.1", "no public address"),
    ("https://evil.example/", "172.16.0.1", "no public address"),
    ("https://evil.example/", "192.168.1.1", "no public address"),
    ("https://evil.example/", "100.64.0.1", "no public address"),
    ("https://evil.example/", "198.18.0.1", "no public address"),
    ("https://evil.example/", "192.0.0.192", "no public address"),
    ("https://evil.example/", "fd00::1", "no public address"),
    ("https://evil.example/", "fd00:ec2::254", "no public address"),
    ("https://evil.example/", "fec0::1", "no public address"),
    ("https://evil.example/", "2001:db8::1", "no public address"),
    ("http://169.254.169.254/latest/meta-data", "169.254.169.254", "a link-local address"),
    ("http://metadata.example/", "168.63.129.16", "the address of a metadata service"),
    ("http://evil.example/", "fe80::1", "a link-local address"),
    ("http://evil.example/", "fe80::1%eth0", "a link-local address"),
    ("http://0/", "0.0.0.0", "the unspecified address"),
    ("http://[::]/", "::", "the unspecified address"),
    ("http://evil.example/", "224.0.0.1", "a multicast address"),
    ("http://evil.example/", "ff0e::1", "a multicast address"),
    ("http://evil.example/", "240.0.0.1", "a reserved address"),
    ("http://evil.example/", "255.255.255.255", "a reserved address"),
    ("http://evil.example/", "::7f00:1", "a reserved address"),
    ("http://evil.example/", "::ffff:127.0.0.1", "a loopback address"),
    ("http://evil.example/", "::ffff:169.254.169.254", "a link-local address"),
    ("http://evil.example/", "2002:7f00:1::", "a loopback address"),
    ("http://evil.example/", "2002:c0a8:101::1", "no public address"),
    ("http://evil.example/", "64:ff9b::7f00:1", "a loopback address"),
    ("http://evil.example/", "64:ff9b::a9fe:a9fe", "a link-local address"),
    ("http://evil.example/", "64:ff9b:1::808:808", "(no public|a reserved) address"),
    ("http://evil.example/", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "no public address"),
    ("http://me.example/", OWN, "an address of this node"),
    ("http://me.example/", f"::ffff:{OWN}", "an address of this node"),
    ("http://me.example/", "2606:4700::77", "an address of this node"),
    ("http://evil.example/", "garbage", "no address"),
]


@pytest.mark.parametrize(("url", "address", "says"), ADDRESSES)
async def test_an_address_that_is_not_public_is_refused_before_a_connection(
    url: str, address: str, says: str, tmp_path: Path
) -> None:
    for answer in ((address,), ("8.8.8.8", address)):  # one of several is enough
        with pytest.raises(
            UrlForbiddenError, match=f"is not fetched on this node: .* is {says}$"
        ) as e:
            await fetch_url(url, tmp_path / "x", RULES, Resolver(answer), _never)
        assert "allow_hosts" in str(e.value.hint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file:///etc/passwd", "the scheme 'file'"),
        ("ftp://example.com/x", "the scheme 'ftp'"),
        ("gopher://example.com/x", "the scheme 'gopher'"),
        ("//example.com/x", "the scheme ''"),
        ("http://user:secret@example.com/", "a user or a password"),
        ("http://user@example.com/", "a user or a password"),
        ("http://example.com@127.0.0.1/", "a user or a password"),
        ("http://example.com\\@127.0.0.1/", "a backslash"),
        ("http://example.com/\r\nHost: evil", "a control character"),
        ("http://example.com/a b", "a blank"),
        ("http:///x", "names no host"),
        ("http://example.com:0/", "names no host or port"),
        ("http://example.com:99999/", "is no URL"),
        ("http://example.com:x/", "is no URL"),
        ("http://[::1/", "is no URL"),
        ("http://[fe80::1%25eth0]/", "names no host"),
        ("http://exa%6dple.com/", "names no host"),
        (f"http://{'a' * 64}.example/", "is no URL"),
        (f"http://example.com/{'a' * 8192}", "has 8211 characters; at most 8192"),
    ],
)
async def test_what_is_no_plain_http_url_is_refused_unresolved(
    url: str, says: str, tmp_path: Path
) -> None:
    resolver = Resolver(("8.8.8.8",))
    with pytest.raises(UrlError, match=says) as caught:
        await fetch_url(url, tmp_path / "x", RULES, resolver, _never)
    assert resolver.asked == []
    assert "secret" not in str(caught.value)


def test_what_may_be_a_secret_is_not_repeated() -> None:
    with pytest.raises(UrlError) as caught:
        split_url(f"http://u:secret@h/{'x' * 300} ?token=secret")
    assert "secret" not in caught.value.message
    assert len(caught.value.message) < 250


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
async def test_a_public_address_is_connected_to_as_it_was_resolved(
    address: str, tmp_path: Path
) -> None:
    asked = []

    async def note(address: str, port: int) -> socket.socket:
        asked.append((address, port))
        raise ConnectionRefusedError(111, "Connection refused")

    resolver = Resolver((address,))
    with pytest.raises(UrlError, match="cannot connect: Connection refused"):
        await fetch_url("https://good.example/x", tmp_path / "x", RULES, resolver, note)
    assert asked == [(address, 443)]


async def test_a_name_is_resolved_once_and_a_second_answer_never_matters(
    server: Server, tmp_path: Path
) -> None:
    """DNS rebinding: public when it is checked, loopback when it is asked again."""
    server.gives("/x", TEXT)
    resolver = Resolver(("8.8.8.8",), ("127.0.0.1",))
    asked = []

    async def note(address: str, port: int) -> socket.socket:
        asked.append(address)
        raise OSError(113, "No route to host")

    url = f"http://rebind.example:{server.port}/x"
    with pytest.raises(UrlError, match="No route to host"):
        await fetch_url(url, tmp_path / "x", RULES, resolver, note)
    assert (resolver.asked, asked) == (["rebind.example"], ["8.8.8.8"])
    with pytest.raises(UrlForbiddenError, match="a loopback address"):
        await fetch_url(url, tmp_path / "x", RULES, resolver, _never)
    assert server.asked == []


@pytest.mark.parametrize(
    ("entry", "url", "is_let_in"),
    [
        ("127.0.0.1", "http://127.0.0.1:9/", True),
        ("127.0.0.1:9", "http://127.0.0.1:9/", True),
        ("127.0.0.1:9", "http://127.0.0.1:10/", False),
        ("Data.Lab", "http://data.lab/", True),
        ("data.lab:443", "https://data.lab/", True),
        ("data.lab:443", "http://data.lab/", False),
        ("lab", "http://data.lab/", False),
        ("data.lab", "http://data.lab.evil.example/", False),
        ("[::1]:9", "http://[::1]:9/", True),
        ("::1", "http://[::1]:9/", True),
    ],
)
async def test_the_owner_names_hosts_or_a_port_of_them(
    entry: str, url: str, is_let_in: bool
) -> None:
    rules, resolver = replace(RULES, allow_hosts=(entry,)), Resolver(("10.0.0.1", "::1"))
    if is_let_in:
        assert await approve(split_url(url), rules, resolver) == ("10.0.0.1", "::1")
    else:
        with pytest.raises(UrlForbiddenError, match=r"10\.0\.0\.1 is no public address"):
            await approve(split_url(url), rules, resolver)


# -- redirects ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_loopback_is_refused(
    status: int, server: Server, tmp_path: Path
) -> None:
    inner = f"http://localhost:{server.port}/inner"
    server.gives("/x", b"", status=status, Location=inner)
    server.gives("/inner", b"secret")
    with pytest.raises(UrlForbiddenError, match=r"/inner is not .* a loopback address"):
        await fetch_url(server.url("/x"), tmp_path / "x", server.rules, _as_it_is)
    assert server.asked == ["/x"]
    assert list(tmp_path.iterdir()) == []


async def _as_it_is(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1" if host == "localhost" else host]


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://a:b@127.0.0.1/", "ftp://x/", "http://[", "//[::"]
)
async def test_a_redirect_to_what_is_no_plain_url_is_refused(
    location: str, server: Server, tmp_path: Path
) -> None:
    server.gives("/x", b"", status=302, Location=location)
    with pytest.raises(UrlError, match=r"the scheme|a password|no URL"):
        await fetch_url(server.url("/x"), tmp_path / "x", server.rules)


async def test_five_redirects_are_followed_and_no_more(server: Server, tmp_path: Path) -> None:
    for number in range(6):
        server.gives(f"/{number}", b"", status=302, Location=str(number + 1))
    server.gives("/6", TEXT)
    fetched = await fetch_url(server.url("/1"), tmp_path / "x", server.rules)
    assert fetched.size_bytes == len(TEXT)
    with pytest.raises(UrlError, match="redirected more than 5 times"):
        await fetch_url(server.url("/0"), tmp_path / "y", server.rules)


# -- fetching -----------------------------------------------------------------------------


async def test_a_file_is_fetched_with_what_identifies_it(server: Server, tmp_path: Path) -> None:
    server.gives("/a%20b?k=1", TEXT, ETag='"v1"')
    path = tmp_path / "x"
    fetched = await fetch_url(server.url("/a%20b?k=1#part"), path, server.rules)
    assert fetched == Fetched(len(TEXT), '"v1"', hashlib.sha256(TEXT).hexdigest())
    assert path.read_bytes() == TEXT
    assert server.hosts == [f"127.0.0.1:{server.port}"]


async def test_an_empty_file_and_one_of_unknown_length_are_fetched(
    server: Server, tmp_path: Path
) -> None:
    server.gives("/empty", b"")
    server.gives("/open", TEXT, length=None)
    assert (await fetch_url(server.url("/empty"), tmp_path / "x", server.rules)).size_bytes == 0
    assert (await fetch_url(server.url("/open"), tmp_path / "y", server.rules)).size_bytes == 11000


async def test_a_file_in_chunks_is_fetched_and_a_cut_one_refused(
    server: Server, tmp_path: Path
) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"5\r\nhello\r\n4\r\n URL\r\n")
        if handler.path == "/whole":
            handler.wfile.write(b"0\r\n\r\n")

    server.answers = {"/whole": answer, "/cut": answer}
    await fetch_url(server.url("/whole"), tmp_path / "x", server.rules)
    assert (tmp_path / "x").read_bytes() == b"hello URL"
    with pytest.raises(UrlError, match="broke off"):
        await fetch_url(server.url("/cut"), tmp_path / "y", server.rules)


@pytest.mark.parametrize("length", [-1, None])
async def test_more_than_the_owner_takes_is_refused_by_its_length_and_while_it_comes(
    length: int | None, server: Server, tmp_path: Path
) -> None:
    server.gives("/x", TEXT, length=length)
    exact = replace(server.rules, bytes_max=len(TEXT))
    assert (await fetch_url(server.url("/x"), tmp_path / "x", exact)).size_bytes == len(TEXT)
    less = replace(server.rules, bytes_max=len(TEXT) - 1)
    says = "has 11000 bytes" if length else "has more bytes"
    with pytest.raises(UrlForbiddenError, match=f"{says}; .* at most 10999") as caught:
        await fetch_url(server.url("/x"), tmp_path / "y", less)
    assert "url_input_bytes_max" in str(caught.value.hint)
    assert not (tmp_path / "y").exists()


async def test_a_file_that_ends_early_is_refused(server: Server, tmp_path: Path) -> None:
    server.gives("/x", TEXT, length=len(TEXT) + 1)
    with pytest.raises(UrlError, match="it ended after 11000 of 11001 bytes"):
        await fetch_url(server.url("/x"), tmp_path / "x", server.rules)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [204, 206, 304, 403, 404, 500])
async def test_an_answer_other_than_200_is_said(
    status: int, server: Server, tmp_path: Path
) -> None:
    server.gives("/x", b"", status=status)
    with pytest.raises(UrlError, match=f"the server answers {status}"):
        await fetch_url(server.url("/x"), tmp_path / "x", server.rules)


class Peer:
    """The other end of a connection: sends what it was given and then nothing."""

    def __init__(self) -> None:
        self.sends = b""
        self.ends: list[socket.socket] = []

    async def connect(self, address: str, port: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.sendall(self.sends)
        self.ends.append(theirs)
        return ours

    async def fetch(self, url: str, path: Path, stall_s: float = 60) -> None:
        rules, resolver = replace(RULES, stall_s=stall_s), Resolver(("8.8.8.8",))
        with trio.fail_after(5):
            await fetch_url(url, path, rules, resolver, self.connect)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    for end in made.ends:
        end.close()


@pytest.mark.parametrize("sends", [b"\x1b]0;x\x07", b"HTTP/1.1 404 \x1b[2J\r\n\r\n"])
async def test_what_a_server_says_commands_no_terminal(
    sends: bytes, peer: Peer, tmp_path: Path
) -> None:
    peer.sends = sends + b"\r\n"
    with pytest.raises(UrlError) as caught:
        await peer.fetch("http://x.example/", tmp_path / "x")
    assert caught.value.message.isprintable()


async def test_a_file_that_is_there_is_left_alone(server: Server, tmp_path: Path) -> None:
    server.gives("/x", TEXT)
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UrlError, match="File exists"):
        await fetch_url(server.url("/x"), tmp_path / "x", server.rules)
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("url", ["http://x.example/", "https://x.example/"])
async def test_a_server_that_speaks_something_else_is_said(
    url: str, peer: Peer, tmp_path: Path
) -> None:
    peer.sends = b"SSH-2.0-OpenSSH\r\n"
    with pytest.raises(UrlError, match="broke off"):
        await peer.fetch(url, tmp_path / "x")


@pytest.mark.parametrize(
    ("url", "sends"),
    [
        ("http://x.example/", b""),
        ("http://x.example/", b"HTTP/1.1 200 OK\r\n\r\nsome"),
        ("https://x.example/", b""),
    ],
)
async def test_a_silent_server_is_given_up_and_a_canceled_fetch_ends_at_once(
    url: str, sends: bytes, peer: Peer, tmp_path: Path
) -> None:
    peer.sends = sends
    with pytest.raises(UrlError, match=r"sent next to nothing for 0\.05 s"):
        await peer.fetch(url, tmp_path / "x", stall_s=0.05)
    with trio.move_on_after(0.05) as scope:
        await peer.fetch(url, tmp_path / "x")
    assert scope.cancelled_caught
    assert list(tmp_path.iterdir()) == []


async def test_a_name_that_does_not_resolve_is_said(tmp_path: Path) -> None:
    async def nobody(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(UrlError, match=r"cannot resolve 'nowhere.example': .*not known"):
        await fetch_url("http://nowhere.example/", tmp_path / "x", RULES, nobody, _never)
    with pytest.raises(UrlError, match="has no address"):
        await fetch_url("http://nowhere.example/", tmp_path / "x", RULES, Resolver(()), _never)


# -- TLS ----------------------------------------------------------------------------------


def _certificate(path: Path, host: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


async def test_tls_holds_the_server_to_the_name_though_an_address_is_connected_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = _certificate(tmp_path / "pem", "good.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.server.socket = context.wrap_socket(
        server.server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.gives("/x", TEXT)
    rules = replace(RULES, allow_hosts=("good.example", "evil.example"))
    to_it = Resolver(("127.0.0.1",))
    good, evil = (f"https://{name}.example:{server.port}/x" for name in ("good", "evil"))
    with pytest.raises(UrlError, match="its certificate is refused: self"):
        await fetch_url(good, tmp_path / "a", rules, to_it)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    assert (await fetch_url(good, tmp_path / "b", rules, to_it)).size_bytes == len(TEXT)
    assert server.hosts == [f"good.example:{server.port}"]
    server.gives("/cut", TEXT, length=None)
    with pytest.raises(UrlError, match=r"broke off: .*EOF occurred in violation"):
        await fetch_url(good.replace("/x", "/cut"), tmp_path / "d", rules, to_it)
    with pytest.raises(UserError, match="its certificate is refused: Hostname mismatch"):
        await fetch_url(evil, tmp_path / "c", rules, to_it)
    assert server.asked == ["/x", "/cut"]
