"""`make bench-content`: a file by CID from one holder and from three, beside the same file by
`python -m http.server` and by Kubo's Bitswap, in one run on this machine.

Every copy is compared with the file. The last line counts; it fails when a count is zero, a copy
is wrong, or a promise does not hold: RSS below 200 MB with a file of 1 GiB.
"""

import argparse
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.content.lab import (
    BenchNode,
    Cost,
    Echoes,
    download,
    found,
    http_server,
    measured,
    sha256_of,
)
from tests.integration.kubo import Kubo

PAGE = Path(__file__).parents[3] / "docs" / "internals" / "content.md"
ROOT = Path(__file__).parents[3]
RSS_MB_MAX = 200.0
_MIB = 1024 * 1024


@dataclass
class Row:
    """One line of the table."""

    what: str
    cost: Cost
    verified: bool
    #: Who the processes are, in the order of the cost's lists.
    who: str = ""
    echoes: Echoes | None = None
    rss_mb_max: float = field(default=0.0)

    def line(self, size_bytes: int, http_mb_s: float) -> str:
        """Return it for the table."""
        rate = size_bytes / self.cost.seconds / 1e6
        gib = size_bytes / 2**30
        cells = [
            self.what,
            f"{rate:.0f}",
            f"{rate / http_mb_s:.2f}" if http_mb_s else "",
            f"{self.cost.seconds:.1f}",
            " / ".join(f"{s / gib:.1f}" for s in self.cost.cpu_s),
            " / ".join(f"{mb:.0f}" for mb in self.cost.rss_mb),
            self.who,
            _times(self.echoes.http_s) if self.echoes else "",
            _times(self.echoes.stream_s) if self.echoes else "",
            "yes" if self.verified else "NO",
        ]
        return f"| {' | '.join(cells)} |"


COLUMNS = (
    "what",
    "MB/s",
    "of http.server",
    "s",
    "CPU s per GiB",
    "peak RSS, MB",
    "of",
    "HTTP p50 / p99, ms",
    "echo p50 / p99, ms",
    "verified",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def _times(took_s: list[float]) -> str:
    ordered = sorted(took_s) or [0.0]
    p50, p99 = (ordered[len(ordered) * q // 100] * 1000 for q in (50, 99))
    return f"{p50:.1f} / {p99:.1f}"


def _make_file(path: Path, size_mib: int) -> None:
    rng = random.Random(5)
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(rng.randbytes(_MIB))


class Bench:
    """Does one thing after the other; rows say what came of it."""

    def __init__(self, folder: Path, size_mib: int) -> None:
        self.folder = folder
        self.file = folder / "served" / "file"
        self.file.parent.mkdir()
        _make_file(self.file, size_mib)
        self.digest = sha256_of(self.file)
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def _is_right(self, path: Path) -> bool:
        right = sha256_of(path) == self.digest
        path.unlink()
        return right

    def _row(self, row: Row) -> None:
        self.rows.append(row)
        http = next((r for r in self.rows if r.what.startswith("http")), None)
        size = self.file.stat().st_size
        print(row.line(size, size / http.cost.seconds / 1e6 if http else 0.0), flush=True)

    def by_http(self) -> None:
        """`python -m http.server`, to disk, hashed on the way and synced."""
        copy = self.folder / "by_http"
        with http_server(self.file.parent) as (pid, port), measured(pid) as cost:
            digest = download(port, self.file.name, copy)
        self._row(
            Row("http.server", cost, digest == self.digest and self._is_right(copy), "server")
        )

    def by_nodes(self) -> None:
        """Add, fetch from one holder and from three, export."""
        names = "a b c one three"
        service, nodes = found(self.folder, names)
        try:
            a, b, c, one, three = nodes
            cid = self._add(service, a)
            for holder in (b, c):
                holder.tell("add", service, str(self.file))
            self._fetch("one holder", service, cid, one, [a])
            self._fetch("three holders", service, cid, three, [a, b, c])
            copy = self.folder / "exported"
            with measured(one.pid) as cost:
                cost.seconds = one.tell("export", service, cid, str(copy))["seconds"]
            self._row(Row("export to a file", cost, self._is_right(copy), "node"))
        finally:
            for node in nodes:
                node.end()

    def _add(self, service: str, node: BenchNode) -> str:
        with measured(node.pid) as cost:
            added = node.tell("add", service, str(self.file))
            cost.seconds = added["seconds"]
        self._row(Row("add a file", cost, bool(added["cid"]), "node", rss_mb_max=RSS_MB_MAX))
        return str(added["cid"])

    def _fetch(
        self, what: str, service: str, cid: str, node: BenchNode, holders: list[BenchNode]
    ) -> None:
        peers = [holder.peer for holder in holders]
        pids = [node.pid, *(holder.pid for holder in holders)]
        with Echoes(node, holders[0]) as echoes, measured(*pids) as cost:
            cost.seconds = node.tell("fetch", service, cid, peers)["seconds"]
        copy = self.folder / "fetched"
        node.tell("export", service, cid, str(copy))
        row = Row(f"pairio, {what}", cost, self._is_right(copy), "fetcher / holders", echoes)
        row.rss_mb_max = RSS_MB_MAX
        self._row(row)
        with Echoes(node, holders[0]) as echoes:
            time.sleep(2)  # house: the same questions while nothing is fetched
        quiet = f"{_times(echoes.http_s)} and {_times(echoes.stream_s)}"
        self.notes.append(f"HTTP and echo without a transfer ({what}): {quiet} ms.")

    def by_kubo(self, program: Path) -> None:
        """Two daemons, Bitswap."""
        daemons = [Kubo(program, self.folder / name) for name in ("kubo_a", "kubo_b")]
        try:
            for daemon in daemons:
                daemon.start()
            holder, fetcher = daemons
            wide = ("--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "-Q")
            cid = holder.cli("add", *wide, str(self.file)).stdout.decode().strip()
            holder.connect(fetcher)
            with measured(fetcher.process_id, holder.process_id) as cost:
                fetcher.cli("pin", "add", cid)
            copy = self.folder / "by_kubo"
            fetcher.cli("get", "-o", str(copy), cid)
            self.notes.append(f"Kubo: {fetcher.version}.")
            name = "Kubo, Bitswap, one holder"
            self._row(Row(name, cost, self._is_right(copy), "fetcher / holder"))
        finally:
            for daemon in daemons:
                daemon.stop()


def _kubo() -> Path | None:
    run = subprocess.run(
        [ROOT / "scripts" / "kubo", "--cached"], capture_output=True, text=True, check=False
    )
    return Path(run.stdout.strip()) if run.returncode == 0 else None


def main() -> int:
    """Run it all; 1 when something is missing, wrong or beyond its bound."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pairio-content-"))
    program = _kubo()
    try:
        bench = Bench(folder, options.size)
        print(HEAD, flush=True)
        bench.by_http()
        bench.by_nodes()
        if program is not None:
            bench.by_kubo(program)
        else:
            bench.notes.append("No Kubo here: scripts/kubo builds it.")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _report(bench, options.size, program is not None, options.write)


def _report(bench: Bench, size_mib: int, has_kubo: bool, write: bool) -> int:
    size = size_mib * _MIB
    http_mb_s = size / bench.rows[0].cost.seconds / 1e6
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    about = (
        f"{size_mib} MiB, {os.cpu_count()} CPUs, load average {load}, "
        f"Python {platform.python_version()}. {' '.join(bench.notes)}"
    )
    print(about)
    if write:
        _write([HEAD, *(row.line(size, http_mb_s) for row in bench.rows), "", about])
    large = [row for row in bench.rows if 0 < row.rss_mb_max < max(row.cost.rss_mb)]
    for row in large:
        print(f"{row.what}: RSS {max(row.cost.rss_mb):.0f} MB; at most {RSS_MB_MAX:.0f}")
    verified = sum(row.verified for row in bench.rows)
    ours = sum(row.what.startswith("pairio") for row in bench.rows)
    others = len([r for r in bench.rows if r.what.startswith(("http", "Kubo"))])
    counts = f"transfers: {ours}, beside: {others}, verified: {verified} of {len(bench.rows)}"
    print(f"{counts}, too large: {len(large)}")
    needs_kubo = os.environ.get("CI") == "true"
    whole = ours and others and verified == len(bench.rows) and not large
    return 0 if whole and (has_kubo or not needs_kubo) else 1


def _write(lines: list[str]) -> None:
    """Put the table between the page's two marks."""
    text = PAGE.read_text()
    begin, end = "<!-- content -->\n", "<!-- /content -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    PAGE.write_text(head + begin + "\n".join(lines) + "\n" + end + tail)


if __name__ == "__main__":
    sys.exit(main())
