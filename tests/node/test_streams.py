"""Streamed inputs: a job reads parts of its own inputs, and only of these, as they are."""

import hashlib
import random
from functools import partial
from pathlib import Path

import pytest
import trio

from pairio_node.runner.base import SOCKET
from pairio_node.streams import JobStreams, server
from pairio_node.streams.blocks import BLOCK_BYTES, Blocks, Room
from pairio_node.streams.remote import Remote
from pairio_node.urls import UrlError, UrlForbiddenError, UrlRules
from pairio_protocol.limits import RANGES_TOLD_MAX
from tests.node.streams_lab import Answer, Asked, Job, Web, job, read_answer, say, web

DATA = random.Random(1).randbytes(5 * BLOCK_BYTES + 1000)


async def test_any_range_is_the_files_own(tmp_path: Path) -> None:
    async with web() as there:
        there.files["/a"] = DATA
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, _):
            size = len(DATA)
            rng = random.Random(2)
            for _ in range(60):
                start = rng.randrange(size)
                stop = min(size, start + rng.choice((1, 1000, BLOCK_BYTES, size)))
                answer = await reader.get(range_=f"{start}-{stop - 1}")
                assert (answer.status, answer.body == DATA[start:stop]) == (206, True)
                assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
            assert (await reader.get(range_="-10")).body == DATA[-10:]
            assert (await reader.get(range_=f"{size - 5}-")).body == DATA[-5:]
            whole = await reader.get()
            assert (whole.status, whole.body == DATA) == (200, True)
            assert whole.headers["etag"] == '"one"'
            head = await reader.get(method="HEAD")
            assert (head.status, head.headers["content-length"]) == (200, str(size))
            assert (await reader.get(range_=f"{size}-")).status == 416
            assert (await reader.get(range_="0-1,5-6")).body == DATA


async def test_what_was_read_is_not_fetched_again_and_connections_are_used_again(
    tmp_path: Path,
) -> None:
    async with web() as there:
        there.files["/a"] = DATA
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, streams):
            for _ in range(3):
                await reader.get(range_="0-99")
            assert len(there.asked) == 1  # when it was opened
            await reader.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            await reader.get(range_=f"{4 * BLOCK_BYTES}-{4 * BLOCK_BYTES + 9}")
            assert [asked.range for asked in there.asked[1:]] == [
                (2 * BLOCK_BYTES, 3 * BLOCK_BYTES),
                (4 * BLOCK_BYTES, 5 * BLOCK_BYTES),
            ]
            assert there.connections == 1
            told = (await streams.told())["input0"]
            assert told.ranges == (
                (0, BLOCK_BYTES),
                (2 * BLOCK_BYTES, 3 * BLOCK_BYTES),
                (4 * BLOCK_BYTES, 5 * BLOCK_BYTES),
            )
            assert (told.size_bytes, told.etag, told.sha256) == (len(DATA), '"one"', "")


async def test_a_file_that_was_read_whole_is_told_by_its_hash(tmp_path: Path) -> None:
    async with web() as there:
        there.files |= {"/a": DATA, "/empty": b"", "/small": b"x"}
        urls = map(there.url, there.files)
        async with job(tmp_path / "s", there.rules, *urls) as (reader, streams):
            for number, data in enumerate(there.files.values()):
                assert (await reader.get(number)).body == data
            told = await streams.told()
            for number, data in enumerate(there.files.values()):
                source = told[f"input{number}"]
                assert source.sha256 == hashlib.sha256(data).hexdigest()
                assert (source.size_bytes, source.ranges) == (len(data), ())


async def test_a_server_without_ranges_gives_the_file_whole_once(tmp_path: Path) -> None:
    async def ignore_range(asked: Asked, stream: trio.SocketStream) -> None:
        await say(stream, "200 OK", DATA, 'ETag: "e"')

    async with web() as there:
        there.handlers["/a"] = ignore_range
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, streams):
            asked = len(there.asked)
            assert (await reader.get(range_="100-199")).body == DATA[100:200]
            assert (await reader.get()).body == DATA
            assert len(there.asked) == asked
            told = (await streams.told())["input0"]
            assert told.sha256 == hashlib.sha256(DATA).hexdigest()


async def test_a_file_of_this_machine_is_read_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    async with job(tmp_path / "s", UrlRules(), files=(tmp_path / "x",)) as (reader, streams):
        assert (await reader.get(range_="300000-599999")).body == DATA[300000:600000]
        assert (await reader.get()).body == DATA
        assert await streams.told() == {}
        (tmp_path / "x").unlink()
        assert (await reader.get()).status == 502


# -- what a job cannot do -----------------------------------------------------------------------


async def test_nothing_but_the_jobs_inputs_is_there(tmp_path: Path) -> None:
    async with web() as there:
        there.files |= {"/a": b"mine", "/secret": b"another's"}
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, _):
            own = "/" + reader.path()
            token = own.split("/")[1]
            for target in (
                "/",
                there.url("/secret"),
                f"http://127.0.0.1:{there.port}{own}",
                f"/{'0' * 32}/0/file.bin",
                f"/{token}/1/file.bin",
                f"/{token}/0",
                f"/{token}/0/",
                f"/{token}/0/../0/file.bin",
                f"/{token}/0/a/b",
                f"/{token}/00000/x",
                f"{own}?x",
                f"/{token}/../{token}/0/x",
                f"/{token}/0/%2e%2e%2fsecret/x",
                f"/{token}/-1/x",
                f"/{token}/٠/x",
            ):
                answer = await reader.get(target=target)
                assert answer.status in (400, 404), target
            for method in ("POST", "PUT", "CONNECT", "OPTIONS", "DELETE", "PROPFIND"):
                target = f"127.0.0.1:{there.port}" if method == "CONNECT" else own
                assert (await reader.get(method=method, target=target)).status == 405
            assert [asked.path for asked in there.asked] == ["/a"]


@pytest.mark.parametrize(
    "said",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_others_are_served(
    tmp_path: Path, said: bytes
) -> None:
    async with web() as there:
        there.files["/a"] = b"mine"
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, _):
            async with await reader.connect() as stream:
                await stream.send_all(said)
                await stream.send_eof()
                answer = await read_answer(stream)
                assert answer.status in (0, 400, 404, 405)
            assert (await reader.get()).body == b"mine"


async def test_a_hundred_connections_at_once_are_served_and_ask_few_at_a_time(
    tmp_path: Path,
) -> None:
    async with web() as there:
        there.files["/a"] = DATA * 8
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, _):
            answers: dict[int, Answer] = {}

            async def read(number: int) -> None:
                start = number * (len(DATA) * 8 // 100)
                answers[start] = await reader.get(range_=f"{start}-{start + 999}")

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(read, number)
            assert len(answers) == 100
            assert all(a.body == (DATA * 8)[s : s + 1000] for s, a in answers.items())
            assert there.at_once_max <= 8
            asked = [a.range for a in there.asked]
            assert len(set(asked)) == len(asked), "no block is fetched twice"


async def _moment() -> None:
    with trio.move_on_after(0.05):
        await trio.sleep_forever()


async def _until_left(stream: trio.SocketStream) -> None:
    """Say a byte now and then until nobody listens."""
    with trio.fail_after(30):
        while True:
            try:
                await stream.send_all(b"x")
            except trio.BrokenResourceError:
                return
            await _moment()


async def test_a_job_that_sends_or_reads_slowly_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEAD_S", 0.3)
    monkeypatch.setattr(server, "_SEND_S", 0.3)
    (tmp_path / "x").write_bytes(bytes(30_000_000))
    async with job(tmp_path / "s", UrlRules(), files=(tmp_path / "x",)) as (reader, _):
        async with await reader.connect() as stream:
            await _until_left(stream)  # slow loris
        async with await reader.connect() as stream:
            await stream.send_all(f"GET /{reader.path()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await _until_left(stream)  # it reads nothing
            assert not (await read_answer(stream)).is_whole
        assert (await reader.get(range_="0-9")).status == 206


async def test_a_connection_serves_many_requests(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    async with (
        job(tmp_path / "s", UrlRules(), files=(tmp_path / "x",)) as (reader, _),
        await reader.connect() as stream,
    ):
        for start in range(0, 5000, 100):
            asked = f"GET /{reader.path()} HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{start + 9}"
            await stream.send_all(f"{asked}\r\n\r\n".encode())
            assert (await read_answer(stream)).body == DATA[start : start + 10]


# -- what a server cannot do ----------------------------------------------------------------------


async def _changes_etag(there: Web) -> None:
    there.etags["/a"] = '"two"'


async def _changes_size(there: Web) -> None:
    there.files["/a"] = DATA[:-1]


async def _becomes_short(there: Web) -> None:
    there.files["/a"] = b""


@pytest.mark.parametrize("change", [_changes_etag, _changes_size, _becomes_short])
@pytest.mark.parametrize("etag", ['"one"', 'W/"one"', ""])
async def test_a_file_that_changes_is_said_and_gives_no_byte_of_another(
    tmp_path: Path, change: object, etag: str
) -> None:
    async with web() as there:
        there.files["/a"], there.etags["/a"] = DATA, etag
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, streams):
            await change(there)  # type: ignore[operator]
            answer = await reader.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            assert answer.status == 502
            assert b"changed while the job read it" in answer.body
            assert "input 'input0'" in streams.change
            assert (await reader.get(range_="0-9")).status == 502, "also what was read before"


def _lies(*parts: str, body: bytes = b"x" * 10) -> object:
    async def lie(asked: Asked, stream: trio.SocketStream) -> None:
        start, stop = asked.range or (0, 0)
        named = {"start": start, "last": stop - 1, "size": len(DATA), "length": stop - start}
        lines = [part.format(**named) for part in parts]
        data = (body * BLOCK_BYTES)[: stop - start - 1]  # a byte less than there are
        await stream.send_all("\r\n".join([*lines, "", ""]).encode() + data)
        await stream.aclose()

    return lie


_PARTIAL = "HTTP/1.1 206 Partial"
_RANGE = "Content-Range: bytes {start}-{last}/{size}"


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (_lies(_PARTIAL, "Content-Length: {length}"), "says not which bytes"),
        (_lies(_PARTIAL, _RANGE, "Content-Length: 99999999"), "bytes are 9999"),
        (_lies(_PARTIAL, _RANGE, "Content-Length: 5"), "bytes are 5"),
        (_lies(_PARTIAL, _RANGE), "ended after"),
        (_lies(_PARTIAL, _RANGE, "Content-Length: {length}", body=b""), "broke off"),
        (_lies(_PARTIAL, "Content-Range: bytes 0-9/{size}", "Content-Length: 10"), "other bytes"),
        (_lies(_PARTIAL, "Content-Range: bytes 9-0/{size}"), "says not which bytes"),
        (_lies(_PARTIAL, "Content-Range: bytes {start}-{last}/5"), "says not which bytes"),
        (_lies(_PARTIAL, "Content-Range: bytes {start}-{last}/*"), "says not which bytes"),
        (_lies(_PARTIAL, "Content-Range: lines 1-2/3"), "says not which bytes"),
        (_lies(_PARTIAL, _RANGE, "Content-Encoding: gzip", "Content-Length: {length}"), "encoded"),
        (_lies("HTTP/1.1 500 \x1b[2J", "Content-Length: 0"), "answers 500"),
        (_lies("HTTP/1.1 403 No", "Content-Length: 0"), "answers 403"),
        (_lies("HTTP/1.1 304 Not Modified"), "answers 304"),
        (_lies("HTTP/1.1 100 Continue\r\n\r\n" * 20), "again and again"),
        (_lies("HTTP/1.1 206 P", "X: " + "a" * 100_000), "broke off"),
        (_lies("no http at all"), "broke off"),
        (_lies(_PARTIAL, _RANGE, "Transfer-Encoding: chunked", "", "ffffffff"), "more bytes"),
    ],
)
async def test_a_server_that_lies_is_found_out(tmp_path: Path, lie: object, said: str) -> None:
    async with web() as there:
        there.files["/a"] = DATA
        there.etags["/a"] = ""
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, streams):
            there.handlers["/a"] = lie  # type: ignore[assignment]
            answer = await reader.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            assert answer.status == 502
            assert said in answer.body.decode()
            assert said in streams.trouble
            assert answer.body.decode().strip().isprintable()
            del there.handlers["/a"]
            again = await reader.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            assert again.body == DATA[2 * BLOCK_BYTES : 2 * BLOCK_BYTES + 10]
            assert (streams.trouble, streams.change) == ("", "")


async def test_a_server_that_sends_next_to_nothing_is_given_up(tmp_path: Path) -> None:
    async def drip(asked: Asked, stream: trio.SocketStream) -> None:
        start, stop = asked.range or (0, 0)
        length, total = stop - start, len(DATA)
        head = f"HTTP/1.1 206 P\r\nContent-Length: {length}\r\n"
        head += f"Content-Range: bytes {start}-{stop - 1}/{total}\r\n\r\n"
        await stream.send_all(head.encode())
        while True:
            await _moment()
            await stream.send_all(b"x")

    async with web() as there:
        there.files["/a"], there.etags["/a"] = DATA, ""
        rules = UrlRules(allow_hosts=there.rules.allow_hosts, stall_s=0.3)
        async with job(tmp_path / "s", rules, there.url("/a")) as (reader, _):
            there.handlers["/a"] = drip
            with trio.fail_after(20):
                answer = await reader.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            assert (answer.status, b"next to nothing" in answer.body) == (502, True)


async def test_no_more_is_fetched_than_the_owner_allows(tmp_path: Path) -> None:
    async with web() as there:
        there.files["/a"] = DATA
        rules = UrlRules(allow_hosts=there.rules.allow_hosts, bytes_max=2 * BLOCK_BYTES)
        async with job(tmp_path / "s", rules, there.url("/a")) as (reader, _):
            assert (await reader.get(range_=f"{BLOCK_BYTES}-{BLOCK_BYTES + 9}")).status == 206
            answer = await reader.get(range_=f"{3 * BLOCK_BYTES}-{3 * BLOCK_BYTES + 9}")
            assert (answer.status, b"fetches no more" in answer.body) == (403, True)
            assert (await reader.get(range_="0-9")).status == 206, "what is here is given"


async def test_a_body_that_breaks_off_reaches_the_job_as_cut(tmp_path: Path) -> None:
    async with web() as there:
        there.files["/a"] = DATA

        async def fail_late(asked: Asked, stream: trio.SocketStream) -> None:
            if asked.range and asked.range[1] > 3 * BLOCK_BYTES:
                await say(stream, "503 Later", b"")
            else:
                await there.give(asked, stream)

        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, streams):
            there.handlers["/a"] = fail_late
            answer = await reader.get()
            assert not answer.is_whole
            assert DATA.startswith(answer.body)
            assert "answers 503" in streams.trouble


# -- the owner's rules ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://0.0.0.0/",
        "file:///etc/passwd",
        "ftp://data.example/x",
        "http://user:secret@data.example/",
    ],
)
async def test_what_the_rules_are_against_is_never_opened(tmp_path: Path, url: str) -> None:
    streams = JobStreams(tmp_path / "s", UrlRules(), own_network=True)
    with pytest.raises(UrlError) as refused:
        await streams.add_url(0, "input", url)
    assert "secret" not in refused.value.message
    if url.startswith("http") and "@" not in url:
        assert isinstance(refused.value, UrlForbiddenError)


async def test_a_redirect_leads_nowhere_that_the_rules_are_against(tmp_path: Path) -> None:
    async with web() as inside, web() as outside:
        inside.files["/secret"] = b"of this network"

        async def redirect(asked: Asked, stream: trio.SocketStream) -> None:
            await say(stream, "302 Found", b"", f"Location: {inside.url('/secret')}")

        outside.files["/a"] = DATA
        async with job(tmp_path / "s", outside.rules, outside.url("/a")) as (reader, _):
            outside.handlers["/a"] = redirect  # from now on: also when a job is under way
            answer = await reader.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            assert answer.status == 403
            assert b"loopback" in answer.body
        streams = JobStreams(tmp_path / "t", outside.rules, own_network=True)
        with pytest.raises(UrlForbiddenError):
            await streams.add_url(0, "input", outside.url("/a"))
        assert inside.asked == []


async def test_redirects_that_are_allowed_are_followed_and_remembered(tmp_path: Path) -> None:
    async with web() as there:

        async def redirect(asked: Asked, stream: trio.SocketStream) -> None:
            await say(stream, "307 There", b"", "Location: /b")

        there.handlers["/a"] = redirect
        there.files["/b"] = DATA
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, _):
            for number in (1, 2, 3):
                await reader.get(range_=f"{number * BLOCK_BYTES}-{number * BLOCK_BYTES + 9}")
            assert [asked.path for asked in there.asked].count("/a") == 1
            there.files["/c"] = there.files.pop("/b")

            async def moved(asked: Asked, stream: trio.SocketStream) -> None:
                await say(stream, "307 There", b"", "Location: /c")

            there.handlers["/a"] = moved  # as a signed URL that has run out
            answer = await reader.get(range_=f"{5 * BLOCK_BYTES}-{5 * BLOCK_BYTES + 9}")
            assert answer.body == DATA[5 * BLOCK_BYTES : 5 * BLOCK_BYTES + 10]


@pytest.mark.parametrize("location", ["http://[", "//[::", "file:///etc/passwd", "http://a:b@x/"])
async def test_a_redirect_to_what_is_no_url_is_an_answer(tmp_path: Path, location: str) -> None:
    async with web() as there:

        async def redirect(asked: Asked, stream: trio.SocketStream) -> None:
            await say(stream, "302 Found", b"", f"Location: {location}")

        there.files["/a"] = DATA
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, streams):
            there.handlers["/a"] = redirect
            answer = await reader.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            assert answer.status == 502
            assert streams.trouble


async def test_a_job_that_asks_for_what_cannot_be_had_again_and_again_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio_node.streams.sources._FAILED_MAX", 2)
    async with web() as there:

        async def fail(asked: Asked, stream: trio.SocketStream) -> None:
            await say(stream, f"503 {asked.headers['range']}", b"")

        there.files["/a"] = DATA
        async with job(tmp_path / "s", there.rules, there.url("/a")) as (reader, streams):
            there.handlers["/a"] = fail
            for number in (1, 2, 3, 4):
                at = number * BLOCK_BYTES
                assert (await reader.get(range_=f"{at}-{at}")).status == 502
            [(_, _, source)] = streams._urls.values()
            assert list(source._failed) == [3, 4]
            assert "answers 503" in streams.trouble


async def test_streams_that_cannot_be_noted_are_an_error_of_the_disk_and_not_begun(
    tmp_path: Path,
) -> None:
    (tmp_path / "s" / "streams.json.part").mkdir(parents=True)  # as on a full disk
    streams = JobStreams(tmp_path / "s", UrlRules(), own_network=True)
    with pytest.raises(OSError, match=r"streams\.json\.part"):
        async with streams.serving():
            raise AssertionError("the job was begun")
    with pytest.raises(ConnectionRefusedError):
        await trio.open_unix_socket(str(streams.socket_folder / SOCKET))


async def test_a_run_that_is_taken_up_is_served_also_when_the_disk_is_full(tmp_path: Path) -> None:
    async with web() as there:
        there.files["/a"] = DATA
        async with job(tmp_path / "s", there.rules, there.url("/a")):
            pass
        (tmp_path / "s" / "streams.json.part").mkdir()
        streams = JobStreams.found(tmp_path / "s", there.rules)
        assert streams is not None
        async with streams.serving():
            assert (await Job(streams).get(range_="0-9")).body == DATA[:10]


async def test_redirects_end(tmp_path: Path) -> None:
    async with web() as there:

        async def around(asked: Asked, stream: trio.SocketStream) -> None:
            await say(stream, "302 Found", b"", "Location: /a")

        there.handlers["/a"] = around
        streams = JobStreams(tmp_path / "s", there.rules, own_network=True)
        with pytest.raises(UrlError, match="redirected more than"):
            await streams.add_url(0, "input", there.url("/a"))
        assert len(there.asked) == 6


async def test_a_name_that_resolves_otherwise_the_second_time_is_not_followed() -> None:
    """DNS rebinding: the address that was looked at is the one that is connected to."""
    answers = [("93.184.216.34",), ("127.0.0.1",)]
    asked, connected = [], []

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    async def connect(address: str, port: int) -> trio.abc.Stream:
        connected.append(address)
        raise OSError("refused")

    remote = Remote("http://data.example/x", UrlRules(), resolve, connect)

    async def keep(_: bytes) -> None:
        return None

    with pytest.raises(UrlError, match="cannot connect"):
        await remote.open(10, keep)
    assert (asked, connected) == (["data.example"], ["93.184.216.34"])
    with pytest.raises(UrlForbiddenError):
        await remote.open(10, keep)
    assert connected == ["93.184.216.34"]


# -- the disk -------------------------------------------------------------------------------------


def test_blocks_keep_to_their_room_and_what_was_read_stays_known(tmp_path: Path) -> None:
    room = Room(3 * BLOCK_BYTES)
    size = 10 * BLOCK_BYTES
    blocks = Blocks(tmp_path / "b", size, room)
    for number in range(10):
        blocks.put(number, bytes([number]) * BLOCK_BYTES)
    assert [n for n in range(10) if blocks.has(n)] == [7, 8, 9]
    assert sum(path.stat().st_size for path in (tmp_path / "b").iterdir()) == 3 * BLOCK_BYTES
    assert blocks.get(0) is None
    assert blocks.ranges(5) == ((0, size),)
    assert blocks.sha256_hex() == ""
    again = Blocks(tmp_path / "b", size, Room(3 * BLOCK_BYTES))
    assert (again.ranges(5), again.get(8)) == (((0, size),), bytes([8]) * BLOCK_BYTES)


@pytest.mark.parametrize("count_max", [1, 2, 3, RANGES_TOLD_MAX])
def test_ranges_that_are_too_many_are_joined_over_the_smallest_gaps(
    tmp_path: Path, count_max: int
) -> None:
    blocks = Blocks(tmp_path / "b", 100 * BLOCK_BYTES, Room(2**40))
    read = (0, 1, 3, 10, 12, 50)
    for number in read:
        blocks.put(number, bytes(BLOCK_BYTES))
    told = blocks.ranges(count_max)
    assert len(told) == min(count_max, 5)
    assert all(any(s <= n * BLOCK_BYTES < e for s, e in told) for n in read)
    if count_max == 3:
        in_blocks = [(s // BLOCK_BYTES, e // BLOCK_BYTES) for s, e in told]
        assert in_blocks == [(0, 4), (10, 13), (50, 51)]


async def test_a_restart_of_the_node_goes_on_with_what_was_opened(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"local")
    async with web() as there:
        there.files["/a"] = DATA
        run = partial(job, tmp_path / "s", there.rules, there.url("/a"), files=(tmp_path / "x",))
        async with run() as (reader, _):
            await reader.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            path = reader.path()
        asked = len(there.asked)
        found = JobStreams.found(tmp_path / "s", there.rules)
        assert found is not None
        async with found.serving():
            again = type(reader)(found)
            assert again.path() == path
            answer = await again.get(range_=f"{2 * BLOCK_BYTES}-{2 * BLOCK_BYTES + 9}")
            assert answer.body == DATA[2 * BLOCK_BYTES : 2 * BLOCK_BYTES + 10]
            assert len(there.asked) == asked
            assert (await again.get(1)).body == b"local"
            assert (await again.get(range_="-5")).body == DATA[-5:]
            there.etags["/a"] = '"two"'
            assert (await again.get(range_=f"{BLOCK_BYTES}-")).status == 502
            assert len((await found.told())["input0"].ranges) == 3
        narrower = JobStreams.found(tmp_path / "s", UrlRules())
        assert narrower is not None
        assert narrower._rules.allow_hosts == ()
    assert JobStreams.found(tmp_path / "nothing", UrlRules()) is None
