"""`make scale`: what a job costs, and how long it waits, in networks of 10, 100 and 1,000 nodes.

Each network idles for a while and is measured; then it gets a stream of jobs from members at
random, and a burst from one; then it is measured until all of them have ended and every node knows
all of it. The table goes to `docs/internals/scale.md`. Traffic and times are functions of the seed;
CPU is this machine's.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from scale_world import Job, ScaleWorld, Sent, folded_once

from pairio_protocol.signing import SigningKey, _verify

__all__ = ["Measured", "measure", "problems", "table"]

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "scale.md"
IDLE_MS = 20_000
RATE_PER_S = 25
WORK_MS = 200
ENDED_WITHIN_MS = 60_000
KNOWN_WITHIN_MS = 15_000
SYNC = ("digest", "frontier", "segments", "forks")
LIST = ("hello", "want_changes", "changes")


@dataclass
class Measured:
    """One network: what was sent while it idled, and from the first submit on."""

    nodes: int
    jobs: list[Job]
    burst: list[Job]
    idle: Sent
    busy: Sent
    ended: int
    known_ms: int | None
    presence_bytes: int

    @cached_property
    def count(self) -> int:
        return len(self.jobs) + len(self.burst)

    def per_job(self, kind: str) -> float:
        """Frames of a kind per job."""
        return self.busy.frames[kind] / self.count

    def direct(self) -> tuple[float, float]:
        """Frames and bytes per job between those whom it concerns."""
        others = ("gossip", "presence", *SYNC, *LIST)
        kinds = [k for k in self.busy.frames if k not in others]
        frames = sum(self.busy.frames[k] for k in kinds)
        return frames / self.count, sum(self.busy.size[k] for k in kinds) / self.count

    def per_node_second(self, sent: Sent, *kinds: str) -> tuple[float, float]:
        """Frames and bytes that a node sends in a second."""
        scale = self.nodes * sent.ms / 1000
        return (
            sum(sent.frames[k] for k in kinds) / scale,
            sum(sent.size[k] for k in kinds) / scale,
        )

    def core_ms(self, sent: Sent) -> float:
        """CPU of a core per node and second, in ms, with the signatures that it would check."""
        seconds = sent.core_cpu_s + sent.checks * check_s()
        return 1000 * seconds / (self.nodes * sent.ms / 1000)

    def job_ms(self) -> float:
        """CPU per job and node, in ms, beyond what an idle node uses."""
        more = self.core_ms(self.busy) - self.core_ms(self.idle)
        return more * self.busy.ms / 1000 / self.count


_CHECK_S: list[float] = []


def check_s() -> float:
    """Return the CPU time of checking one signature on this machine."""
    if not _CHECK_S:
        key, message = SigningKey(bytes(32)), bytes(200)
        signature = key.sign(message)
        began = time.process_time()
        for _ in range(500):
            _verify(key.peer, message, signature)
        _CHECK_S.append((time.process_time() - began) / 500)
    return _CHECK_S[0]


def measure(nodes: int, jobs: int, seed: int, idle_ms: int = IDLE_MS) -> Measured:
    """Live through one network: four fifths of the jobs as a stream, the rest as a burst."""
    with folded_once():
        world = ScaleWorld(seed, nodes)
    world.begin()
    world.run_for(idle_ms)
    idle = world.end()
    world.begin()
    stream = jobs - jobs // 5
    for _ in range(stream):
        world.submit(world.rng.choice(world.nodes), WORK_MS)
        world.run_for(1000 // RATE_PER_S)
    first = world.rng.choice(world.nodes)
    for _ in range(jobs - stream):
        world.submit(first, WORK_MS)
    _run_while(world, lambda: not all(map(world.is_ended, world.jobs)), ENDED_WITHIN_MS)
    ended = sum(map(world.is_ended, world.jobs))
    known_ms = _run_while(world, lambda: not world.is_known_everywhere(), KNOWN_WITHIN_MS)
    return Measured(
        nodes,
        world.jobs[:stream],
        world.jobs[stream:],
        idle,
        world.end(),
        ended,
        known_ms if world.is_known_everywhere() else None,
        world.presence_size(),
    )


def _run_while(world: ScaleWorld, goes_on: Callable[[], bool], limit_ms: int) -> int:
    """Let time pass while something is the case; return how much did."""
    began_ms = world.now_ms
    while goes_on() and world.now_ms - began_ms < limit_ms:
        world.run_for(500)
    return world.now_ms - began_ms


def percentiles(jobs: list[Job]) -> str:
    """Return p50 and p99 of the time from submit to start, in ms."""
    waited = sorted(job.started_ms - job.at_ms for job in jobs if job.started_ms is not None)
    if not waited:
        return "none"
    return f"{statistics.median(waited):.0f} / {waited[int(0.99 * (len(waited) - 1))]}"


def started(found: Measured) -> int:
    """Return how many jobs began."""
    return sum(job.started_ms is not None for job in (*found.jobs, *found.burst))


def problems(found: Measured) -> list[str]:
    """Return what must not be: jobs without an end, and counts that are zero."""
    said = []
    if found.ended < found.count:
        said.append(f"{found.count - found.ended} of {found.count} jobs did not end")
    if found.known_ms is None:
        said.append("not every node knows all logs")
    kinds = ("award", "have", "push", "ack", "presence", "digest", "gossip", "lookup", "hold")
    said += [f"no frame of kind {k} was sent" for k in kinds if not found.busy.frames[k]]
    if not found.idle.frames["presence"] or not found.idle.frames["digest"]:
        said.append("an idle network was silent")
    return [f"{found.nodes} nodes: {what}" for what in said]


def _rate(pair: tuple[float, float]) -> str:
    frames, size = pair
    return f"{frames:.1f} / {_bytes(size)}"


def _bytes(size: float) -> str:
    return f"{size:.0f} B" if size < 1000 else f"{size / 1000:.1f} kB"


_Cell = Callable[[Measured], str]
ROWS: list[tuple[str, _Cell]] = [
    ("**time to start**, stream, p50 / p99, ms", lambda m: percentiles(m.jobs)),
    ("time to start, burst from one node, p50 / p99, ms", lambda m: percentiles(m.burst)),
    ("**direct** frames / bytes per job", lambda m: _rate(m.direct())),
    *(
        (f"… {kind} per job", lambda m, kind=kind: f"{m.per_job(kind):.2f}")
        for kind in ("lookup", "push", "ack", "award", "have", "beat", "hold", "held", "decline")
    ),
    ("**bids**: requests named per job", lambda m: f"{m.busy.bids / m.count:.2f}"),
    ("**news**: gossip per job and node, once", lambda m: _bytes(m.busy.news / m.count)),
    (
        "gossip per job and node, all copies, frames / bytes",
        lambda m: _rate(
            (
                m.busy.frames["gossip"] / m.count / m.nodes,
                m.busy.size["gossip"] / m.count / m.nodes,
            )
        ),
    ),
    (
        "**sync** per node and second, busy, frames / bytes",
        lambda m: _rate(m.per_node_second(m.busy, *SYNC)),
    ),
    *(
        (f"… {kind}", lambda m, kind=kind: _rate(m.per_node_second(m.busy, kind)))
        for kind in SYNC[:3]
    ),
    ("sync per node and second, idle", lambda m: _rate(m.per_node_second(m.idle, *SYNC))),
    (
        "**presence** per node and second, busy",
        lambda m: _rate(m.per_node_second(m.busy, "presence")),
    ),
    ("presence per node and second, idle", lambda m: _rate(m.per_node_second(m.idle, "presence"))),
    ("**CPU** per job and node, ms", lambda m: f"{m.job_ms():.2f}"),
    ("CPU per node and second, idle, ms", lambda m: f"{m.core_ms(m.idle):.2f}"),
    (
        "CPU of the simulator itself per node and second, busy, ms",
        lambda m: f"{(m.busy.all_cpu_s - m.busy.core_cpu_s) * 1e6 / m.nodes / m.busy.ms:.2f}",
    ),
    (
        "all nodes know all logs, s after the last job",
        lambda m: "never" if m.known_ms is None else f"{m.known_ms / 1000:.1f}",
    ),
]


def table(found: list[Measured]) -> str:
    """Return the measurements as a table in Markdown."""
    heads = " | ".join(f"{m.nodes:,} nodes" for m in found)
    lines = [f"| | {heads} |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(map(cell, found))} |" for name, cell in ROWS]
    return "\n".join(lines)


def write(text: str, seed: int, jobs: int) -> None:
    """Put the table into the page, between its marks."""
    before, _, rest = PAGE.read_text().partition("<!-- scale -->\n")
    _, _, after = rest.partition("<!-- /scale -->")
    versions = f"Seed {seed}, {jobs} jobs, Python {platform.python_version()}"
    versions += f", {platform.machine()}; one signature is checked in {check_s() * 1e6:.0f} µs."
    PAGE.write_text(f"{before}<!-- scale -->\n{text}\n\n{versions}\n<!-- /scale -->{after}")


def main() -> int:
    """Measure every size; 1 when a job did not end or something was never counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options = parser.parse_args()
    found = []
    for nodes in options.nodes:
        began = time.process_time()
        found.append(measure(nodes, options.jobs, options.seed))
        print(f"{nodes} nodes took {time.process_time() - began:.0f} s of CPU", file=sys.stderr)
    text = table(found)
    print(text)
    if options.write:
        write(text, options.seed, options.jobs)
    wrong = [what for m in found for what in problems(m)]
    for what in wrong:
        print(what, file=sys.stderr)
    sizes = " ".join(map(str, options.nodes))
    print(
        f"nodes: {sizes}, jobs: {sum(m.count for m in found)}, started: {sum(map(started, found))}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
