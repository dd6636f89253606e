"""What is tried with Kubo, a row each: who reads, what, how large; and whether it came right."""

import filecmp
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.integration.interop.lab import Lab, random_file, random_folder

__all__ = ["Row", "play"]

KUBO, PAIRIO = "Kubo reads from pairio", "pairio reads from Kubo"


@dataclass
class Row:
    """One try. `seconds` is the time that the reader took; `wrong` says what was."""

    direction: str
    what: str
    size_bytes: int
    seconds: float = 0.0
    wrong: str = ""


def play(lab: Lab, sizes: list[int]) -> Iterator[Row]:
    """Try everything, files and folders in each of the sizes."""
    trials: list[Callable[[], Iterator[Row]]] = [partial(_texts, lab), partial(_hidden, lab)]
    for number, size in enumerate(sizes):
        trials.append(partial(_kubo_reads_file, lab, size, number))
        trials.append(partial(_kubo_reads_folder, lab, size, number))
    trials += [partial(_kubo_pins, lab), partial(_policy, lab)]
    for number, size in enumerate(sizes):
        trials.append(partial(_pairio_reads_file, lab, size, number, _PROFILE))
        trials.append(partial(_pairio_reads_file, lab, size, number, _DEFAULT))
        trials.append(partial(_pairio_reads_folder, lab, size, number))
    trials += [partial(_worker_reads, lab, sizes[0]), partial(_resumes, lab, max(sizes))]
    for trial in trials:
        yield from trial()


def _timed(row: Row, act: Callable[[], str]) -> Row:
    """Do what a row is about; `act` returns what was wrong."""
    began = time.monotonic()
    try:
        row.wrong = act()
    except (AssertionError, subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
        row.wrong = repr(error)[:300]
    row.seconds = row.seconds or time.monotonic() - began
    return row


def _same(one: Path, other: Path) -> str:
    """Return how two folders or files differ."""
    if one.is_file():
        return "" if filecmp.cmp(one, other, shallow=False) else "other bytes came"
    names = sorted(p.relative_to(one) for p in one.rglob("*"))
    if names != sorted(p.relative_to(other) for p in other.rglob("*")):
        return "other names came"
    files = [name for name in names if (one / name).is_file()]
    if any(not filecmp.cmp(one / n, other / n, shallow=False) for n in files):
        return "other bytes came"
    return ""


# -- Kubo reads from pairio -----------------------------------------------------------------


def _texts(lab: Lab) -> Iterator[Row]:
    """A published job: output, definition, result, and what lies below the result."""
    source = lab.folder / "text"
    source.write_text("hello from pairio\n")
    job = lab.copied(str(source))
    cid = job["outputFileResults"][0]["cid"]
    result = lab.pairio("publish", job["jobId"]).strip()

    def output() -> str:
        read = lab.kubo.cli("cat", cid).stdout
        return "" if read == b"hello from pairio\n" else f"it read {read!r}"

    def definition() -> str:
        read = json.loads(lab.kubo.cli("dag", "get", job["jobId"]).stdout)
        named = (read["type"], read["app"], read["processor"])
        return "" if named == ("pairio/job", "copying", "copy") else f"it read {read}"

    def whole() -> str:
        read = json.loads(lab.kubo.cli("dag", "get", result).stdout)
        links = (read["status"], read["outputs"]["output"]["cid"]["/"])
        return "" if links == ("completed", cid) else f"it read {read}"

    def below() -> str:
        read = json.loads(lab.kubo.cli("dag", "get", f"{result}/outputs/output").stdout)
        return "" if (read["cid"]["/"], read["size"]) == (cid, 18) else f"it read {read}"

    for what, act, size in (
        ("`ipfs cat OUTPUT`", output, 18),
        ("`ipfs dag get JOB`", definition, 0),
        ("`ipfs dag get RESULT`", whole, 0),
        ("`ipfs dag get RESULT/outputs/output`", below, 0),
    ):
        yield _timed(Row(KUBO, what, size), act)


def _hidden(lab: Lab) -> Iterator[Row]:
    """What is not published is not given: Kubo waits in vain."""
    source = lab.folder / "secret"
    source.write_text("nobody published this\n")
    job = lab.copied(str(source))
    cid = job["outputFileResults"][0]["cid"]

    def hidden() -> str:
        for name in (cid, job["jobId"]):
            try:
                read = lab.kubo.cli("block", "get", "--timeout=2s", name).stdout
            except AssertionError:
                continue
            return f"it read {read!r}"
        return ""

    yield _timed(Row(KUBO, "what is not public: refused", 22), hidden)


def _kubo_reads_file(lab: Lab, size: int, number: int) -> Iterator[Row]:
    path = random_file(lab.folder / f"out-{number}", size, 100 + number)
    cid = lab.added(path)
    lab.pairio("publish", cid)
    target = lab.folder / f"out-{number}.kubo"

    def read() -> str:
        lab.kubo.cli("get", "-o", str(target), cid)
        return _same(path, target)

    yield _timed(Row(KUBO, "`ipfs get FILE`", size), read)


def _kubo_reads_folder(lab: Lab, size: int, number: int) -> Iterator[Row]:
    """A folder that is the output of a job."""
    path = random_folder(lab.folder / f"folder-{number}", size, 200 + number * 2)
    job = lab.copied(str(path))
    lab.pairio("publish", job["jobId"])
    target = lab.folder / f"folder-{number}.kubo"

    def read() -> str:
        lab.kubo.cli("get", "-o", str(target), job["outputFileResults"][0]["cid"])
        return _same(path, target)

    yield _timed(Row(KUBO, "`ipfs get FOLDER`, output of a job", size), read)


def _kubo_pins(lab: Lab) -> Iterator[Row]:
    """A recursive pin of a result takes all that it links to."""
    source = lab.folder / "pinned"
    source.write_text("to be pinned\n")
    job = lab.copied(str(source))
    result = lab.pairio("publish", job["jobId"]).strip()

    def pin() -> str:
        lab.kubo.cli("pin", "add", "--timeout=60s", result)
        here = lab.kubo.cli("refs", "local").stdout.decode().split()
        for cid in (job["jobId"], job["outputFileResults"][0]["cid"]):
            raw = lab.kubo.cli("cid", "format", "-v", "1", "-b", "base32", "--mc", "raw", cid)
            if raw.stdout.decode().strip() not in here:
                return f"{cid} is not there"
        return ""

    yield _timed(Row(KUBO, "`ipfs pin add RESULT`: job, output, console with it", 0), pin)


def _policy(lab: Lab) -> Iterator[Row]:
    """A service whose results are public, read from the node that computed."""
    source = lab.folder / "open"
    source.write_text("the policy says so\n")
    job = lab.copied(str(source))
    cid = job["outputFileResults"][0]["cid"]
    lab.pairio("service", "policy", "lab", "--results", "public")
    lab.connect(lab.worker)

    def read() -> str:
        found = lab.kubo.cli("cat", "--timeout=60s", cid).stdout
        return "" if found == b"the policy says so\n" else f"it read {found!r}"

    yield _timed(Row(KUBO, "`ipfs cat OUTPUT` of a service whose results are public", 19), read)
    lab.pairio("service", "policy", "lab", "--results", "members")
    lab.kubo.cli("swarm", "disconnect", f"/p2p/{lab.worker.info['peerId']}")


# -- pairio reads from Kubo -----------------------------------------------------------------

_PROFILE = ("--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--max-file-links=1024")
_DEFAULT = ("--cid-version=0", "--raw-leaves=false", "--chunker=size-262144")
_WORDS = {_PROFILE: "1 MiB chunks, CIDv1", _DEFAULT: "Kubo's default: 256 KiB chunks, CIDv0"}


def _pairio_reads_file(lab: Lab, size: int, number: int, options: tuple[str, ...]) -> Iterator[Row]:
    seed = 300 + number + (50 if options == _DEFAULT else 0)
    path = random_file(lab.folder / f"in-{seed}", size, seed)
    cid = lab.kubo.cli("add", "-Q", *options, str(path)).stdout.decode().strip()
    row = Row(PAIRIO, f"a file as input of a job; {_WORDS[options]}", size)
    yield _timed(row, lambda: _is_copied(lab, row, cid, path))


def _pairio_reads_folder(lab: Lab, size: int, number: int) -> Iterator[Row]:
    path = random_folder(lab.folder / f"in-folder-{number}", size, 400 + number * 2)
    cid = lab.kubo.cli("add", "-r", "-Q", *_PROFILE, str(path)).stdout.decode().strip()
    row = Row(PAIRIO, "a folder as input of a job", size)
    yield _timed(row, lambda: _is_copied(lab, row, cid, path))


def _is_copied(lab: Lab, row: Row, cid: str, path: Path) -> str:
    """Submit a job that copies an input by CID; the time is that of the submit, which fetches."""
    began = time.monotonic()
    job = json.loads(lab.pairio("submit", "copying/copy", "-i", f"data={cid}", "--json"))
    row.seconds = time.monotonic() - began
    done = lab.copied(cid)
    assert done["jobId"] == job["jobId"]
    target = lab.folder / f"{path.name}.copied"
    if path.is_file():
        lab.pairio("get", done["jobId"], "output", "-o", str(target))
        return _same(path, target)
    out = done["outputFileResults"][0]["cid"]  # made anew from the files: equal, if they are
    known = lab.kubo.cli("add", "-r", "-Q", "-n", *_PROFILE, str(path)).stdout.decode().strip()
    return "" if out == known else f"a folder {out} came, not {known}"


def _worker_reads(lab: Lab, size: int) -> Iterator[Row]:
    """The node that computes asks its own peer, where the one that submits has none."""
    path = random_file(lab.folder / "for-worker", size, 501)
    cid = lab.kubo.cli("add", "-Q", *_PROFILE, str(path)).stdout.decode().strip()
    row = Row(PAIRIO, "an input that only the computing node's peer has", size)
    lab.connect(lab.worker)
    lab.until_it_asks(lab.worker)

    def read() -> str:
        lab.pairio("submit", "copying/copy", "-i", f"data={cid}", "--wait", node=lab.lone)
        found = lab.worker.get("status")["bitswap"]
        return "" if found.get("bitswap_bytes_received", 0) >= size else "it came another way"

    yield _timed(row, read)
    lab.kubo.cli("swarm", "disconnect", f"/p2p/{lab.worker.info['peerId']}")


def _resumes(lab: Lab, size: int) -> Iterator[Row]:
    """Kubo dies during a fetch; the next one asks only for what is missing. In a service where
    nobody computes: no job asks for it meanwhile."""
    lab.pairio("service", "create", "lonely")
    lab.pairio("app", "install", "lonely", str(lab.folder / "app"))
    path = random_file(lab.folder / "resumed", size, 601)
    cid = lab.kubo.cli("add", "-Q", *_DEFAULT, str(path)).stdout.decode().strip()
    wish = ("submit", "copying/copy", "--service", "lonely", "-i", f"data={cid}")
    row = Row(PAIRIO, "a file, Kubo killed in the middle and started again", size)
    lab.until_it_asks(lab.submitter)
    before = _received(lab)

    def read() -> str:
        submit = _start(lab, *wish)
        while _received(lab) - before < size // 4 and submit.poll() is None:
            time.sleep(0.005)  # house: waiting for another process
        lab.kubo.kill()
        submit.wait(120)
        lab.kubo.start()
        lab.until_it_asks(lab.submitter)
        lab.pairio(*wish)
        twice = _received(lab) - before - size
        if twice > size // 4:
            return f"{twice} bytes came twice"
        version_1 = lab.kubo.cli("cid", "base32", cid).stdout.decode().strip()
        lab.pairio("publish", version_1)  # refused unless it is here whole
        return ""

    yield _timed(row, read)


def _start(lab: Lab, *arguments: str) -> "subprocess.Popen[bytes]":
    """Begin `pairio ARGUMENTS`."""
    code = "from pairio_cli.main import main; main()"
    argv = [sys.executable, "-c", code, *arguments]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(argv, env=lab.submitter.environment, stdout=quiet, stderr=quiet)


def _received(lab: Lab) -> int:
    return int(lab.submitter.get("status")["bitswap"].get("bitswap_bytes_received", 0))
