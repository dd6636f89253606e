"""The processes of `make bench-content`: nodes with a socket, `python -m http.server`, Kubo."""

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pairio_node.home import Home
from tests.integration.content.node import SOCKET
from tests.integration.waiting import until

__all__ = ["BenchNode", "Cost", "Echoes", "found", "http_server", "measured", "sha256_of"]

_READY_S = 120.0
_PIECE_BYTES = 1024 * 1024


def sha256_of(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Cost:
    """What something took: seconds, and of each process CPU seconds and the peak of its memory."""

    seconds: float = 0.0
    cpu_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def measured(*pids: int) -> Iterator[Cost]:
    """Measure what these processes need while the block runs."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before = [_cpu_s(pid) for pid in pids]
    cost, began = Cost(), time.perf_counter()
    yield cost
    cost.seconds = cost.seconds or time.perf_counter() - began
    cost.cpu_s = [_cpu_s(pid) - b for pid, b in zip(pids, before, strict=True)]
    cost.rss_mb = [_peak_mb(pid) for pid in pids]


class BenchNode:
    """A node in a process of its own."""

    def __init__(self, folder: Path, name: str, bootstrap: "BenchNode | None" = None) -> None:
        self.home = folder / name
        opened = Home.open(self.home)
        self.peer = opened.key().peer
        listen = f"/ip4/127.0.0.1/tcp/{opened.ports().listen}"
        self.address = f"{listen}/p2p/{self.peer}"
        self._argv = [sys.executable, "-m", "tests.integration.content.node"]
        self._argv += ["run", "--json", "--no-watchdog", "--listen", listen]
        self._argv += ["--bootstrap", bootstrap.address] if bootstrap else []
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        (self.home / SOCKET).unlink(missing_ok=True)
        with self.home.with_name(f"{self.home.name}.log").open("ab") as log:
            environment = {**os.environ, "PAIRIO_HOME": str(self.home)}
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log, env=environment)
        until(f"{self.home.name} listens", (self.home / SOCKET).exists, _READY_S)
        until(f"{self.home.name} answers", self._answers, _READY_S)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def _answers(self) -> bool:
        try:
            return bool(self.call("GET", "status"))
        except (OSError, ValueError):
            return False

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask its API."""
        info = json.loads((self.home / "api.json").read_text())
        port = int(info["url"].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {
            "Authorization": f"Bearer {info['token']}",
            "Content-Type": "application/json",
        }
        connection.request(method, f"/api/v1/{path}", json.dumps(body) if body else None, headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def is_in_with(self, others: int) -> bool:
        """Say whether it is in a service and connected with so many."""
        is_in = bool(self.call("GET", "services")["services"])
        return is_in and len(self.call("GET", "status")["peers"]) == others

    def tell(self, *command: Any) -> dict[str, Any]:
        """Have something done; raises RuntimeError with what the node said."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(1800)
            asked.connect(str(self.home / SOCKET))
            asked.sendall(json.dumps(command).encode() + b"\n")
            with asked.makefile() as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        if "error" in answer:
            raise RuntimeError(f"{command[0]}: {answer['error']}")
        return answer

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def end(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None


def found(folder: Path, names: str) -> tuple[str, list[BenchNode]]:
    """Start nodes that are members of one service and all connected; return it and them."""
    first_name, *others = names.split()
    nodes = [BenchNode(folder, first_name)]
    try:
        nodes += [BenchNode(folder, name, nodes[0]) for name in others]
        service = nodes[0].call("POST", "services", {"name": "bench"})["serviceId"]
        for node in nodes[1:]:
            member = {"who": node.peer, "roles": ["submit"], "name": node.home.name}
            nodes[0].call("POST", "services/bench/grant", member)
        for node in nodes:
            said = f"{node.home.name} is in the service with all"
            until(said, partial(node.is_in_with, len(nodes) - 1), _READY_S)
    except BaseException:
        for node in nodes:
            node.end()
        raise
    return service, nodes


class Echoes:
    """Small questions asked all the while: to the API of nodes, and from one node to another."""

    def __init__(self, asked: BenchNode, peer: BenchNode) -> None:
        self._asked, self._peer = asked, peer
        self._ends = threading.Event()
        self.http_s: list[float] = []
        self.stream_s: list[float] = []
        self._threads = [threading.Thread(target=t) for t in (self._ask_api, self._ask_peer)]

    def __enter__(self) -> "Echoes":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _ask_api(self) -> None:
        while not self._ends.wait(0.1):
            began = time.perf_counter()
            self._asked.call("GET", "status")
            self.http_s.append(time.perf_counter() - began)

    def _ask_peer(self) -> None:
        while not self._ends.is_set():
            try:
                self.stream_s += self._asked.tell("echoes", self._peer.peer, 0.5)["took_s"]
            except RuntimeError:  # two nodes that dial each other at once keep one connection
                time.sleep(0.2)  # house: waiting for another process


@contextmanager
def http_server(folder: Path) -> Iterator[tuple[int, int]]:
    """Serve a folder; yields (process, port)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(argv, cwd=folder, stdout=quiet, stderr=quiet)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until("http.server answers", answers, _READY_S)
        yield server.pid, port
    finally:
        server.terminate()
        server.wait(20)


def download(port: int, name: str, destination: Path) -> str:
    """Download a file to disk in a process of its own; return its hash, made on the way."""
    code = f"""
import hashlib, http.client, os
connection = http.client.HTTPConnection("127.0.0.1", {port})
connection.request("GET", "/{name}")
response, digest = connection.getresponse(), hashlib.sha256()
with open({str(destination)!r}, "wb") as file:
    while piece := response.read({_PIECE_BYTES}):
        digest.update(piece)
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())
print(digest.hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
