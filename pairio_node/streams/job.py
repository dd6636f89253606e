"""The streams of one run: its inputs, the socket by which it reads them, what it read.

In a sandbox the job has a loopback of its own. `pairio.sdk._forward`, started before the app,
listens there and passes connections on to a Unix socket that is mounted into the sandbox; a job
that shares this machine's network reads from a port here. What is needed to go on after a restart
of the node stands in the folder.
"""

import json
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psutil
import trio

from pairio_node.runner.base import FORWARD_PORT, SOCKET
from pairio_node.streams.blocks import Room
from pairio_node.streams.content import ContentSource, ReadContent, StreamedContent
from pairio_node.streams.remote import Remote
from pairio_node.streams.server import serve_connections
from pairio_node.streams.sources import LocalSource, Source, UrlSource
from pairio_node.urls import UrlRules
from pairio_protocol.records import SourceRead

__all__ = ["JobStreams"]

_CARD: Final = "streams.json"
#: Requests to servers at once, for one run.
_AT_ONCE_MAX: Final = 8
_CACHE_BYTES_MAX: Final = 2 * 1024**3
#: The cache takes at most so much of what is free where jobs lie.
_DISK_PERCENT_MAX: Final = 50
_BACKLOG: Final = 256


class JobStreams:
    """The streams of a run, kept in `folder`. `own_network`: the job has one of its own. What it
    asks for in vain is counted in `refused`."""

    def __init__(
        self,
        folder: Path,
        rules: UrlRules,
        *,
        own_network: bool,
        refused: Counter[str] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        #: Shown to the job; nothing else is.
        self.socket_folder = folder / "socket"
        self.socket_folder.mkdir(mode=0o755, exist_ok=True)
        self._rules = rules
        self._own_network = own_network
        self._token = secrets.token_hex(16)
        self._port = FORWARD_PORT if own_network else 0
        self._sources: dict[int, Source] = {}
        self._urls: dict[int, tuple[str, str, UrlSource]] = {}  # (name of the input, URL, source)
        self._files: dict[int, str] = {}
        self._contents: dict[int, ContentSource] = {}
        self._at_once = trio.CapacityLimiter(_AT_ONCE_MAX)
        free_bytes = psutil.disk_usage(str(folder)).free
        self._room = Room(min(_CACHE_BYTES_MAX, free_bytes * _DISK_PERCENT_MAX // 100))
        self._resumed = False
        self._refused = refused

    # -- before the run -------------------------------------------------------------------

    async def add_url(self, number: int, name: str, url: str) -> None:
        """Let the job read a URL, if the owner's rules do, and it is there.

        Raises:
            UrlError: it cannot be had.
        """
        source = self._source_of(number, url)
        await source.open()
        self._sources[number] = source
        self._urls[number] = (name, url, source)

    def _source_of(self, number: int, url: str) -> UrlSource:
        folder = self.folder / str(number)
        remote = Remote(url, self._rules)
        return UrlSource(remote, folder, self._rules, self._room, self._at_once, _unix_ms)

    def add_file(self, number: int, path: Path) -> None:
        """Let the job read a file of this machine."""
        self._sources[number] = LocalSource(path)
        self._files[number] = str(path)

    def add_content(self, number: int, content: StreamedContent, read: ReadContent) -> None:
        """Let the job read a file by CID, part by part."""
        source = ContentSource(content, read)
        self._sources[number] = self._contents[number] = source

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve the job in the block; `url` is known in it. Raises OSError, and the block is not
        begun, when there can be no socket, or the disk is full."""
        try:
            listener = self._noted(self._listen())
        except OSError:
            if not self._resumed:
                raise
            yield  # the port is somebody else's now: the job reads no more, and may still end well
            return
        try:
            async with listener, trio.open_nursery() as nursery:
                nursery.start_soon(
                    serve_connections, listener, self._sources, self._token, self._refused
                )
                yield
                nursery.cancel_scope.cancel()
        finally:
            await self.close()

    async def close(self) -> None:
        """Let connections go."""
        for _, _, source in self._urls.values():
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await source.close()

    def _listen(self) -> trio.SocketListener:
        kind = trio.socket.AF_UNIX if self._own_network else trio.socket.AF_INET
        made = trio.socket.socket(kind, trio.socket.SOCK_STREAM)
        try:
            if self._own_network:
                self._bind_in_folder(made)
            else:
                made.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
                _plain(made).bind(("127.0.0.1", self._port))
                self._port = made.getsockname()[1]
            made.listen(_BACKLOG)
            return trio.SocketListener(made)
        except BaseException:
            made.close()
            raise

    def _noted(self, listener: trio.SocketListener) -> trio.SocketListener:
        """Note what is needed after a restart, before anything goes on: an error is one of the
        disk, and no group of errors."""
        try:
            self._write_card()
        except OSError:
            if not self._resumed:  # else the earlier note is as good
                listener.socket.close()
                raise
        return listener

    def _bind_in_folder(self, made: trio.socket.SocketType) -> None:
        path = self.socket_folder / SOCKET
        path.unlink(missing_ok=True)
        fd = os.open(self.socket_folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The path of a socket has at most 107 bytes; that of a home may have more.
            _plain(made).bind(f"/proc/self/fd/{fd}/{SOCKET}")
        finally:
            os.close(fd)
        path.chmod(0o666)  # jobs may be another user's; nobody else gets to it

    def url(self, number: int, base_name: str) -> str:
        """Return the URL by which the job reads an input."""
        return f"http://127.0.0.1:{self._port}/{self._token}/{number}/{quote(base_name, safe='')}"

    def has(self, number: int) -> bool:
        """Say whether an input is streamed."""
        return number in self._sources

    @property
    def shown(self) -> Path | None:
        """The folder with the socket that the job's sandbox shows; None: it reads from a port."""
        return self.socket_folder if self._own_network else None

    # -- after the run --------------------------------------------------------------------

    @property
    def change(self) -> str:
        """Which file changed while the run read it, in words; "" if none did."""
        return next(
            (f"input {n!r}: {s.trouble}" for n, _, s in self._urls.values() if s.changed), ""
        )

    @property
    def trouble(self) -> str:
        """Why the run was not given what it asked for last, in words."""
        said = [(name, source.trouble) for name, _, source in self._urls.values()]
        said += [(source.content.name, source.trouble) for source in self._contents.values()]
        return next((f"input {name!r}: {trouble}" for name, trouble in said if trouble), "")

    async def told(self) -> dict[str, SourceRead]:
        """Return what a result tells of inputs by URL, by their names."""
        return {name: await source.told() for name, _, source in self._urls.values()}

    # -- after a restart ------------------------------------------------------------------

    def _write_card(self) -> None:
        card = {
            "token": self._token,
            "port": self._port,
            "own_network": self._own_network,
            "allow_hosts": list(self._rules.allow_hosts),
            "files": self._files,
            "contents": {str(n): source.content.kept() for n, source in self._contents.items()},
            "urls": {
                str(number): {"name": name, "url": url, **source.kept()}
                for number, (name, url, source) in self._urls.items()
            },
        }
        part = self.folder / f"{_CARD}.part"
        part.write_text(json.dumps(card))
        part.rename(self.folder / _CARD)

    @staticmethod
    def found(
        folder: Path,
        rules: UrlRules,
        refused: Counter[str] | None = None,
        read: ReadContent | None = None,
    ) -> "JobStreams | None":
        """Return the streams of a run that an earlier start began, None if it had none. Of its
        hosts those are allowed that the owner still allows; content by CID is had by `read`."""
        try:
            card = json.loads((folder / _CARD).read_text())
            streams = JobStreams._taken_up(card, folder, rules, refused)
            if read is not None:
                for number, kept in card.get("contents", {}).items():
                    streams.add_content(int(number), StreamedContent.of(kept), read)
            return streams
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def _taken_up(
        card: dict[str, Any], folder: Path, rules: UrlRules, refused: Counter[str] | None
    ) -> "JobStreams":
        still = tuple(host for host in rules.allow_hosts if host in card["allow_hosts"])
        rules = replace(rules, allow_hosts=still)
        own_network = card["own_network"]
        streams = JobStreams(folder, rules, own_network=own_network, refused=refused)
        streams._token, streams._port = card["token"], card["port"]
        streams._resumed = True
        for number, path in card["files"].items():
            streams.add_file(int(number), Path(path))
        for number, kept in card["urls"].items():
            source = streams._source_of(int(number), kept["url"])
            source.take_up(kept)
            streams._sources[int(number)] = source
            streams._urls[int(number)] = (kept["name"], kept["url"], source)
        return streams


def _plain(made: trio.socket.SocketType) -> Any:
    """Return the socket below trio's, whose `bind` would resolve names."""
    return made._sock  # type: ignore[attr-defined]


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
