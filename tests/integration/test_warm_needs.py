"""Secrets and streamed inputs of jobs in warm workers: as in a cold start, and nothing is left."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from pairio_node.runner import RunSpec
from pairio_node.runner.base import FORWARD_PORT
from pairio_node.runner.zygote import kernel
from pairio_node.runner.zygote.pool import WarmLimits
from pairio_node.streams import JobStreams
from pairio_node.urls import UrlRules
from tests.integration.runner_lab import supervisor_of
from tests.integration.warm_lab import Lab, RunInput, lab, until

pytestmark = pytest.mark.integration
VALUE = "correct horse battery"
TOKEN = {"TOKEN": VALUE}
#: The value, for code that must not hold it in one piece.
IN_PIECES = "''.join(['correct ', 'horse ', 'battery'])"
DATA = b"".join(b"%07d\n" % n for n in range(100_000))


@pytest.fixture(params=["zygote", "single"])
async def warm(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    """A lab whose app is warm, of either kind."""
    mode = "on" if request.param == "zygote" else "single"
    async with lab(tmp_path, WarmLimits(mode=mode)) as made:
        await made.warm(request.param)
        yield made


async def _told_warm(made: Lab, code: str, **changes: Any) -> Any:
    """Run code that prints one JSON document, in a warm worker."""
    before = made.status["jobsWarm"]
    told = await made.told(code, **changes)
    assert made.status["jobsWarm"] == before + 1, made.status
    return told


# -- secrets ----------------------------------------------------------------------------------


async def test_a_warm_job_reads_its_secrets_as_a_cold_one_does(tmp_path: Path) -> None:
    code = """
from pairio.sdk import get_secret
folder = os.environ["PAIRIO_SECRETS_DIR"]
def tried(do):
    try: do()
    except OSError as error: return error.strerror
    return "worked"
stat = os.stat(folder + "/TOKEN")
print(json.dumps({
    "whole": get_secret("TOKEN") == open(folder + "/TOKEN").read() == VALUE,
    "folder": folder, "names": os.listdir(folder), "mode": stat.st_mode, "owner": stat.st_uid,
    "mount": os.statvfs(folder).f_flag & 15, "top": os.stat(folder).st_mode,
    "write": tried(lambda: open(folder + "/TOKEN", "w")),
    "remove": tried(lambda: os.remove(folder + "/TOKEN")),
    "make": tried(lambda: open(folder + "/other", "w")),
    "environ": [k for k, v in os.environ.items() if VALUE in v],
}))
""".replace("VALUE", IN_PIECES)
    seen = {}
    for mode in ("off", "on", "single"):
        (tmp_path / mode).mkdir()
        async with lab(tmp_path / mode, WarmLimits(mode=mode)) as made:
            if mode == "off":
                seen[mode] = await made.told(code, secrets=TOKEN)
            else:
                await made.warm("zygote" if mode == "on" else mode)
                seen[mode] = await _told_warm(made, code, secrets=TOKEN)
    assert seen["off"]["whole"]
    assert seen["off"]["names"] == ["TOKEN"]
    assert seen["off"]["write"] == seen["off"]["make"] == "Read-only file system"
    mounted = [seen[mode].pop("mount") for mode in ("off", "on", "single")]
    assert mounted[1] & mounted[2] & os.ST_RDONLY
    assert seen["on"] == seen["off"]
    assert seen["single"] == seen["off"]


async def test_the_console_of_a_warm_job_shows_no_secret(warm: Lab) -> None:
    code = "print(open('/run/secrets/TOKEN').read())\nsys.exit('it is ' + " + IN_PIECES + ")"
    outcome = await warm.run(code, secrets=TOKEN)
    assert warm.status["jobsWarm"] == 1
    assert outcome.console.decode().splitlines() == ["[secret TOKEN]", "it is [secret TOKEN]"]
    assert VALUE not in outcome.error
    assert _files_with_it(warm.top) == []


HUNT = f"""
import re
value = {IN_PIECES}.encode()
found = [name for name in ("/run/secrets", "/run") if "TOKEN" in os.listdir(name)]
found += [key for key in os.environ if "SECRET" in key]
for line in open("/proc/self/maps"):
    ends, mode = line.split()[:2]
    start, stop = (int(end, 16) for end in ends.split("-"))
    if "r" in mode and "[v" not in line:
        with open("/proc/self/mem", "rb", 0) as memory:
            memory.seek(start)
            try: data = memory.read(stop - start)
            except OSError: continue
        places = [m.start() + start for m in re.finditer(re.escape(value), data)]
        own = id(value)
        found += [line for place in places if not own <= place < own + 4096]
        del data
"""
READ = "kept = open('/run/secrets/TOKEN').read(); os.environ['KEPT'] = kept; App.kept = kept\n"


async def test_job_2_finds_no_secret_of_job_1_not_even_in_its_memory(warm: Lab) -> None:
    await _told_warm(warm, READ + "print(json.dumps('read'))", secrets=TOKEN)
    found = await _told_warm(warm, HUNT + "print(json.dumps(found))")
    assert found == []


async def test_the_hunt_finds_a_secret_that_is_there(warm: Lab) -> None:
    found = await _told_warm(warm, READ + HUNT + "print(json.dumps(found))", secrets=TOKEN)
    assert {"/run/secrets", "PAIRIO_SECRETS_DIR"} <= {*found}
    assert any("heap" in line or "rw-p" in line for line in found)


@pytest.mark.skipif(os.geteuid() != 0, reason="looks into the memory of others")
async def test_only_the_job_and_its_supervisor_ever_hold_a_secret(warm: Lab) -> None:
    code = READ + "open('/tmp/working/begun', 'w').close()\nimport time; time.sleep(600)"
    spec, cancel = warm.spec(code, secrets=TOKEN), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warm.run_spec, spec, cancel)
        await until((spec.work_dir / "tmp/working/begun").exists)
        supervisor = supervisor_of(spec.work_dir)
        holding = await trio.to_thread.run_sync(_holding, os.getpid())
        job = {pid for pid in holding if "sleep(600)" in _job_words(pid, spec)}
        assert job, holding  # the scan sees it where it is
        assert holding <= job | {supervisor}
        assert _files_with_it(warm.top) == []
        cancel.set()
    assert warm.status["jobsWarm"] == 1
    await _told_warm(warm, "print(json.dumps(1))")
    assert await trio.to_thread.run_sync(_holding, os.getpid()) == set()


def _job_words(pid: int, spec: RunSpec) -> str:
    """Return the code of the job if a process is its own, by its working directory."""
    try:
        inside = Path(f"/proc/{pid}/root/tmp/job.json").read_text()
    except OSError:
        return ""
    return inside if json.loads(inside)["job_id"] == spec.job_id else ""


def _holding(node: int) -> set[int]:
    """Return the processes below the node's in whose memory the value is: its helpers, zygotes,
    what waits for the next jobs."""
    found = set()
    for pid in (process.pid for process in psutil.Process(node).children(recursive=True)):
        try:
            regions = Path(f"/proc/{pid}/maps").read_text().splitlines()
            with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                if any(VALUE.encode() in _region(memory, line) for line in regions):
                    found.add(pid)
        except OSError:
            continue  # gone meanwhile, or another's
    return found


def _region(memory: Any, line: str) -> bytes:
    ends, mode = line.split()[:2]
    start, stop = (int(end, 16) for end in ends.split("-"))
    if "w" not in mode or stop - start > 2**28:
        return b""
    memory.seek(start)
    try:
        return bytes(memory.read(stop - start))
    except OSError:
        return b""


async def test_a_job_beside_one_with_secrets_finds_none(warm: Lab) -> None:
    code = READ + "open('/tmp/working/begun', 'w').close()\nimport time; time.sleep(600)"
    spec, cancel = warm.spec(code, secrets=TOKEN), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warm.run_spec, spec, cancel)
        await until((spec.work_dir / "tmp/working/begun").exists)
        assert warm.status["jobsWarm"] == 1, warm.status
        assert await warm.told(HUNT + "print(json.dumps(found))") == []
        cancel.set()


async def test_a_job_whose_secrets_do_not_come_runs_cold_with_them(warm: Lab) -> None:
    """As when a worker breaks in the middle: they lie ready again for the cold start."""
    warm.runner.pool._entries[next(iter(warm.runner.pool._entries))].warmed.host.close()  # type: ignore[union-attr]
    told = await warm.told(
        f"print(json.dumps(open('/run/secrets/TOKEN').read() == {IN_PIECES}))", secrets=TOKEN
    )
    assert told is True
    assert warm.status["jobsWarm"] == 0


async def test_where_the_kernel_lacks_what_it_takes_such_a_job_runs_cold_and_others_stay_warm(
    warm: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernel.makes_memory_folders()
    monkeypatch.setattr(kernel, "_SYS_MOUNT_SETATTR", 9999)  # no kernel has it
    code = "print(json.dumps(len(open('/run/secrets/TOKEN').read())))"
    assert await warm.told(code, secrets=TOKEN) == len(VALUE)
    assert warm.status["jobsWarm"] == 0
    monkeypatch.undo()
    await _told_warm(warm, "print(json.dumps(1))")


# -- streams ----------------------------------------------------------------------------------

READ_URL = """
import urllib.error, urllib.request
def read(url):
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20).read()
url = context.data.get_url()
"""


@asynccontextmanager
async def _streaming(made: Lab, spec: RunSpec) -> AsyncIterator[RunSpec]:
    """Give a run an input that it reads by a stream, and serve it."""
    file = made.top / "data.txt"
    file.write_bytes(DATA)
    streams = JobStreams(spec.work_dir / "streams", UrlRules(), own_network=True)
    streams.add_file(0, file)
    async with streams.serving():
        place = spec.work_dir / "in" / "0" / "data.txt"
        place.parent.mkdir(parents=True)
        file_in = RunInput("data", "data.txt", place, streams.url(0, "data.txt"), is_here=False)
        yield replace(spec, inputs=(file_in,), stream_folder=streams.shown)


def _forwarders() -> list[int]:
    return [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if any("_forward.py" in word for word in p.info["cmdline"] or ())
    ]


async def test_a_warm_job_reads_a_streamed_input_and_reaches_nothing_else(warm: Lab) -> None:
    before = _forwarders()
    code = (
        READ_URL
        + """
import socket
def tried(do):
    try: do()
    except (OSError, urllib.error.URLError) as error: return type(error).__name__
    return "worked"
part = urllib.request.Request(url, headers={"Range": "bytes=8-15"})
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(json.dumps({
    "size": len(read(url)), "part": opener.open(part, timeout=20).read().decode(),
    "other": tried(lambda: read(url.replace("/0/", "/7/"))),
    "root": tried(lambda: read("http://127.0.0.1:%d/" % PORT)),
    "outside": tried(lambda: socket.create_connection(("10.77.0.1", 80), 2)),
    "sees": [p for p in os.listdir("/proc") if p.isdigit() and p not in ("1", str(os.getpid()))],
}))
""".replace("PORT", str(FORWARD_PORT))
    )
    spec = warm.spec(code)
    async with _streaming(warm, spec) as ready:
        outcome = await warm.run_spec(ready)
    assert outcome.status == "completed", outcome
    assert json.loads(outcome.console) == {
        "size": len(DATA),
        "part": "0000001\n",
        "other": "HTTPError",
        "root": "HTTPError",
        "outside": "OSError",
        "sees": [],
    }
    assert warm.status["jobsWarm"] == 1
    assert set(_forwarders()) <= set(before)


async def test_a_job_beside_one_with_a_stream_cannot_read_it(warm: Lab) -> None:
    code = READ_URL + "open('/tmp/working/begun', 'w').close()\nimport time; time.sleep(600)"
    spec, cancel = warm.spec(code), trio.Event()
    async with _streaming(warm, spec) as ready, trio.open_nursery() as nursery:
        nursery.start_soon(warm.run_spec, ready, cancel)
        await until((spec.work_dir / "tmp/working/begun").exists)
        assert warm.status["jobsWarm"] == 1, warm.status
        url = ready.inputs[0].url
        code = (
            "import urllib.request\n"
            f"try: urllib.request.urlopen({url!r}, timeout=5); found = 'LEAK'\n"
            "except OSError as error: found = str(error)\n"
            "print(json.dumps(found))"
        )
        assert "refused" in await warm.told(code)
        cancel.set()


async def test_a_stream_and_secrets_come_together(warm: Lab) -> None:
    code = READ_URL + "print(json.dumps([len(read(url)), len(open('/run/secrets/TOKEN').read())]))"
    async with _streaming(warm, warm.spec(code, secrets=TOKEN)) as ready:
        outcome = await warm.run_spec(ready)
    assert json.loads(outcome.console) == [len(DATA), len(VALUE)]
    assert warm.status["jobsWarm"] == 1


async def test_nothing_is_left_of_a_warm_job_whose_supervisor_was_killed(warm: Lab) -> None:
    before = _forwarders()
    code = READ_URL + "open('/tmp/working/begun', 'w').close()\nimport time; time.sleep(600)"
    spec = warm.spec(code, secrets=TOKEN)
    async with _streaming(warm, spec) as ready, trio.open_nursery() as nursery:
        nursery.start_soon(warm.run_spec, ready)
        await until((spec.work_dir / "tmp/working/begun").exists)
        assert warm.status["jobsWarm"] == 1, warm.status
        assert len(_forwarders()) == len(before) + 1
        os.kill(supervisor_of(spec.work_dir), signal.SIGKILL)
    await until(lambda: set(_forwarders()) <= set(before))
    assert _files_with_it(warm.top) == []


async def test_a_warm_job_goes_on_reading_when_it_is_taken_up_again(warm: Lab) -> None:
    code = READ_URL + (
        "import time\nopen('/tmp/working/begun', 'w').close()\n"
        "while not os.path.exists('/tmp/go'): time.sleep(0.05)\n"
        "print(json.dumps(len(read(url))))"
    )
    spec = warm.spec(code, restart_grace_s=60)
    async with _streaming(warm, spec) as ready, trio.open_nursery() as nursery:
        nursery.start_soon(warm.runner.run, ready, trio.Event())
        await until((spec.work_dir / "tmp/working/begun").exists)
        assert warm.status["jobsWarm"] == 1, warm.status
        nursery.cancel_scope.cancel()
    streams = JobStreams.found(spec.work_dir / "streams", UrlRules())
    assert streams is not None
    async with streams.serving():
        (spec.work_dir / "tmp/go").touch()
        with trio.fail_after(90):
            outcome = await warm.runner.resume(ready, trio.Event())
    assert json.loads(outcome.console) == len(DATA), outcome


# -- what runs cold ---------------------------------------------------------------------------


async def test_a_job_with_the_machines_network_runs_cold(warm: Lab) -> None:
    code = "print(json.dumps(open('/proc/net/dev').read().count(':')))"
    assert await warm.told(code, network="full") == Path("/proc/net/dev").read_text().count(":")
    assert warm.status["jobsWarm"] == 0


def _files_with_it(top: Path) -> list[Path]:
    found = []
    for folder in (top, Path("/dev/shm")):
        for path in folder.rglob("*"):
            try:
                if path.is_file() and VALUE.encode() in path.read_bytes():
                    found.append(path)
            except OSError:
                continue  # gone meanwhile
    return found
