"""`make burst`: many requests at once from one node; when do all ten nodes know all of them?

Ten node processes over libp2p on this machine. Node 0 submits; none computes, so that what is
measured is news alone (`--compute`: nodes 1 to 9 do, and jobs run meanwhile). Each request is one
HTTP call, over `--connections` at the same time; then the same again as one batch call.

When a node knew a request is read from its own database: the arrival time of the segment that
carries it, written as the node takes it. So looking costs the nodes nothing.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import sqlite3
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pairio_protocol.ids import request_id
from pairio_protocol.records import Request
from pairio_protocol.segment import Segment
from tests.integration.chaos.lab import SERVICE, Lab
from tests.integration.chaos.nodes import Node
from tests.integration.waiting import until

__all__ = ["Burst", "Watch", "post_all", "post_batch", "run_burst"]

NODES = 10
#: The promise: this many, known everywhere within this time, with gossip at its worst.
PROMISED, PROMISED_S = 200, 3.0
_LIMIT_S = 180.0
_PAGE = Path(__file__).parents[2] / "docs" / "internals" / "convergence.md"


@dataclass
class Watch:
    """Which requests of node 0 a node holds, and since when, by its database."""

    node: Node
    author: str
    #: request id -> Unix milliseconds
    known: dict[str, int] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)

    def look(self) -> int:
        """Read what is new; return how many requests are known."""
        db = sqlite3.connect(f"file:{self.node.home / 'node.db'}?mode=ro", uri=True, timeout=10)
        try:
            found = db.execute(
                "select hash, data, arrived_unix_ms from segments where author = ?", (self.author,)
            ).fetchall()
        finally:
            db.close()
        for name, data, arrived_ms in found:
            if name in self._seen:
                continue
            self._seen.add(name)
            segment = Segment.decode(data)
            for index, record in enumerate(segment.records()):
                if isinstance(record, Request):
                    seq = segment.first_seq + index
                    self.known[request_id(segment.service, self.author, segment.log.boot, seq)] = (
                        arrived_ms
                    )
        return len(self.known)


@dataclass
class Burst:
    """What one burst came to; times in seconds since the first call."""

    count: int
    loss_percent: int
    computing: bool
    calls: int
    answered_s: float = 0.0
    converged_s: float = 0.0
    half_s: float = 0.0
    call_p50_s: float = 0.0
    call_p99_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    replicated: int = 0
    submitter_cpu_s: float = 0.0
    other_cpu_s: float = 0.0
    frames: int = 0

    @property
    def whole(self) -> bool:
        """Say whether every call was answered and every accepted request is known everywhere."""
        return sum(self.statuses.values()) == self.count == self.statuses[200] and not self.lost


def _definition(tag: str) -> dict[str, Any]:
    return {
        "appName": "sleeper",
        "processorName": "sleep",
        "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
        "parameters": [{"name": "seconds", "value": 0.0}, {"name": "tag", "value": tag}],
    }


Answer = tuple[int, dict[str, Any], float]


class _Client:
    """A kept connection to a node's API."""

    def __init__(self, node: Node) -> None:
        info = json.loads((node.home / "api.json").read_text())
        port = int(info["url"].rpartition(":")[2])
        self._headers = {
            "Authorization": f"Bearer {info['token']}",
            "Content-Type": "application/json",
        }
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT_S)

    def post(self, path: str, body: Any) -> Answer:
        """Return (HTTP status, answer, seconds); status 0 when no answer came."""
        began = time.monotonic()
        try:
            self._connection.request("POST", path, json.dumps(body), self._headers)
            response = self._connection.getresponse()
            status, answer = response.status, json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._connection.close()
            status, answer = 0, {"error": {"message": repr(error)}}
        return status, answer, time.monotonic() - began

    def close(self) -> None:
        self._connection.close()


def _body(tag: str) -> dict[str, Any]:
    return {
        "serviceName": SERVICE,
        "jobDefinition": _definition(tag),
        "requiredResources": {"numCpus": 1, "memoryGb": 0.25, "timeSec": 300},
    }


def post_all(node: Node, tags: list[str], connections: int) -> list[Answer]:
    """Post a job per tag, one call each, over kept connections at the same time."""
    left, answers, lock = list(reversed(tags)), [], threading.Lock()

    def work() -> None:
        client = _Client(node)
        while True:
            with lock:
                if not left:
                    break
                tag = left.pop()
            answer = client.post("/api/v1/jobs", _body(tag))
            with lock:
                answers.append(answer)
        client.close()

    threads = [threading.Thread(target=work) for _ in range(min(connections, len(tags)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def post_batch(node: Node, tags: list[str]) -> list[Answer]:
    """Post all jobs in one call; returns an answer for each job."""
    client = _Client(node)
    status, answer, took_s = client.post("/api/v1/jobs/batch", {"jobs": list(map(_body, tags))})
    client.close()
    if status != 200:
        return [(status, answer, took_s) for _ in tags]
    return [(200 if "requestId" in job else 400, job, took_s) for job in answer["jobs"]]


def run_burst(lab: Lab, count: int, connections: int) -> Burst:
    """Submit `count` jobs at node 0 (0 connections: in one call); wait until all know them all."""
    first = lab.nodes[0]
    burst = Burst(count, lab.loss_percent, lab.workers, count if connections else 1)
    watches = [Watch(node, first.peer) for node in lab.nodes]
    before = [watch.look() for watch in watches]
    cpu, frames = [_cpu_s(node) for node in lab.nodes], _frames(lab)
    tags = [f"burst-{lab.rng.getrandbits(64):016x}" for _ in range(count)]
    began_unix_ms, began = time.time() * 1000, time.monotonic()
    answers = post_all(first, tags, connections) if connections else post_batch(first, tags)
    burst.answered_s = time.monotonic() - began
    burst.statuses = Counter(status for status, _, _ in answers)
    accepted = {answer["requestId"] for status, answer, _ in answers if status == 200}
    burst.replicated = sum(a["replicated"] > 0 for status, a, _ in answers if status == 200)
    calls = sorted(took for _, _, took in answers)
    burst.call_p50_s = statistics.median(calls)
    burst.call_p99_s = calls[min(len(calls) - 1, len(calls) * 99 // 100)]

    def all_known() -> bool:
        counts = [watch.look() for watch in watches]
        return all(n >= b + len(accepted) for n, b in zip(counts, before, strict=True))

    with contextlib.suppress(TimeoutError):  # what is missing is counted below
        until("every node knows every request", all_known, _LIMIT_S)
    arrived = [sorted(w.known[r] for r in accepted if r in w.known) for w in watches]
    burst.lost = sum(len(accepted) - len(times) for times in arrived)
    if not burst.lost:
        burst.converged_s = (max(t[-1] for t in arrived) - began_unix_ms) / 1000
        burst.half_s = (max(t[len(t) // 2] for t in arrived) - began_unix_ms) / 1000
    spent = [_cpu_s(node) - b for node, b in zip(lab.nodes, cpu, strict=True)]
    burst.submitter_cpu_s, burst.other_cpu_s = spent[0], statistics.mean(spent[1:])
    burst.frames = _frames(lab) - frames
    return burst


def _cpu_s(node: Node) -> float:
    times = psutil.Process(node.pid()).cpu_times()
    return float(times.user + times.system)


def _frames(lab: Lab) -> int:
    return sum(n.call("GET", "status")["counters"].get("frames_sent", 0) for n in lab.nodes)


def _row(burst: Burst) -> str:
    cells = (
        burst.count,
        burst.calls,
        f"{burst.loss_percent} %",
        f"{burst.converged_s:.2f}",
        f"{burst.half_s:.2f}",
        f"{burst.answered_s:.2f}",
        f"{burst.call_p50_s * 1000:.0f} / {burst.call_p99_s * 1000:.0f}",
        f"{burst.submitter_cpu_s:.1f} / {burst.other_cpu_s:.1f}",
        f"{burst.frames / burst.count:.0f}",
        "all" if burst.whole else f"{burst.lost} missing, {dict(burst.statuses)}",
    )
    return f"| {' | '.join(map(str, cells))} |"


_COLUMNS = (
    "requests",
    "HTTP calls",
    "gossip lost",
    "all 10 know all, s",
    "half of them, s",
    "all calls answered, s",
    "call p50 / p99, ms",
    "CPU of submitter / each other, s",
    "frames per request",
    "known everywhere",
)
_HEAD = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"


def main() -> int:
    """Run the bursts; 1 when a request was lost or the promised burst took too long."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", default="200,2000")
    parser.add_argument("--losses", default="0,50,90,100")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--compute", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"put the table into {_PAGE.name}")
    options = parser.parse_args()
    bursts: list[Burst] = []
    print(_HEAD, flush=True)
    for loss in map(int, options.losses.split(",")):
        lab = Lab(random.Random(loss), options.nodes, loss, workers=options.compute)
        try:
            lab.begin()
            for connections in (options.connections, 0):
                for count in map(int, options.counts.split(",")):
                    bursts.append(run_burst(lab, count, connections))
                    print(_row(bursts[-1]), flush=True)
        finally:
            lab.end()
    if options.write:
        load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
        _write([_HEAD, *map(_row, bursts), "", f"{os.cpu_count()} CPUs; load average: {load}."])
    late = [b for b in bursts if b.count <= PROMISED and b.converged_s > PROMISED_S]
    for burst in late:
        took = f"took {burst.converged_s:.2f} s: at most {PROMISED_S:g} s"
        print(f"{burst.count} requests at {burst.loss_percent} % loss {took}")
    whole = sum(burst.whole for burst in bursts)
    print(f"bursts: {len(bursts)}, whole: {whole}, late: {len(late)}")
    return 0 if bursts and whole == len(bursts) and not late else 1


def _write(lines: list[str]) -> None:
    """Put the table between the page's two marks."""
    text = _PAGE.read_text()
    begin, end = "<!-- burst -->\n", "<!-- /burst -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    _PAGE.write_text(head + begin + "\n".join(lines) + "\n" + end + tail)


if __name__ == "__main__":
    sys.exit(main())
