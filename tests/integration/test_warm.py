"""Warm workers with real sandboxes: the same as a cold start, and nothing of another job."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.supervise import is_supervised
from pairio_node.runner.zygote.link import _MAIN
from pairio_node.runner.zygote.pool import Warmed, WarmLimits
from pairio_node.runner.zygote.templates import Sandbox
from tests.integration.runner_lab import supervisor_of
from tests.integration.warm_lab import PATIENCE_S, Lab, RunInput, RunOutput, lab, until

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
KINDS = ("zygote", "single")


@pytest.fixture(params=KINDS)
async def warm(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    """A lab whose app is warm, of either kind."""
    mode = "on" if request.param == "zygote" else "single"
    async with lab(tmp_path, WarmLimits(mode=mode)) as made:
        await made.warm(request.param)
        yield made


@pytest.fixture
async def zygote(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path) as made:
        await made.warm()
        yield made


# -- the same as cold -------------------------------------------------------------------------

SEEN = """
import resource
limits = [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]
status = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "argv": sys.argv, "path0": sys.path[0], "cwd": os.getcwd(), "ids": [os.getuid(), os.getgid()],
    "environ": {k: v for k, v in os.environ.items() if k != "JOB_ID"}, "limits": limits,
    "files": {d: sorted(os.listdir(d))
              for d in ("/etc", "/opt", "/opt/pairio", "/app", "/tmp/working")},
    "main": __name__, "stdin": sys.stdin.read(), "session": os.getsid(0) == os.getpid(),
    "version": sys.version,
    "caps": status["CapEff"].strip(), "seccomp": status["Seccomp"].strip(),
    "loopback": open("/proc/net/dev").read().count(":"), "hostname": os.uname().nodename,
    "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
}))
"""


async def test_a_job_sees_what_it_would_see_cold(tmp_path: Path) -> None:
    seen = {}
    for mode in ("off", "on", "single"):
        (tmp_path / mode).mkdir()
        async with lab(tmp_path / mode, WarmLimits(mode=mode)) as made:
            if mode != "off":
                await made.warm("zygote" if mode == "on" else mode)
            seen[mode] = await made.told(SEEN)
            seen[mode]["files"]["/opt/pairio"] = [
                name for name in seen[mode]["files"]["/opt/pairio"] if name != "warm"
            ]
            for name in ("session",):
                seen[mode].pop(name)
    assert seen["off"]["version"] == sys.version
    assert seen["on"] == seen["off"]
    assert seen["single"] == seen["off"]


async def test_inputs_are_read_and_outputs_kept(warm: Lab) -> None:
    spec = warm.spec(
        "context.output; from pathlib import Path\n"
        "Path('made').write_text(open(context.input.local_file_name).read().upper())\n"
        "context.output.upload('made')",
        inputs=(RunInput("input", "a b.txt", warm.top / "jobs" / "x"),),
        outputs=(RunOutput("output", "o.txt"),),
    )
    copy = spec.work_dir / "in" / "0" / "a b.txt"
    copy.parent.mkdir(parents=True)
    copy.write_text("content")
    spec.inputs[0].__dict__["path"] = copy
    outcome = await warm.run_spec(spec)
    assert outcome.status == "completed", outcome
    assert outcome.outputs["output"].read_text() == "CONTENT"
    assert warm.status["jobsWarm"] == 1


async def test_files_of_the_owner_are_inputs_without_a_copy(zygote: Lab) -> None:
    folder = zygote.top / "own"
    folder.mkdir()
    (folder / "one").write_text("1")
    inputs = (RunInput("i", "own", folder), RunInput("j", "one", folder / "one"))
    told = await zygote.told(
        "def refused(do):\n"
        "    try: do()\n"
        "    except OSError as error: return error.strerror\n"
        "print(json.dumps([open(context.i.local_file_name + '/one').read(),"
        " open(context.j.local_file_name).read(),"
        " refused(lambda: open('/in/0/own/one', 'w')), refused(lambda: open('/in/1/one', 'w'))]))",
        inputs=inputs,
    )
    assert told == ["1", "1", "Read-only file system", "Read-only file system"]
    assert (folder / "one").read_text() == "1"
    assert zygote.status["jobsWarm"] == 1


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("sys.exit(7)", 7, ""),
        ("sys.exit('why')", 1, "why"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
        ("os.abort()", -6, ""),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("os.kill(os.getpid(), 15)", -15, ""),
        ("import threading; threading.Thread(target=lambda: print('last')).start()", 0, "last"),
        ("import atexit; atexit.register(lambda: print('last'))", 0, "last"),
    ],
)
async def test_the_end_of_a_job_is_told(warm: Lab, code: str, exit_code: int, said: str) -> None:
    outcome = await warm.run(code)
    assert warm.status["jobsWarm"] == 1
    assert outcome.console.decode().rstrip().endswith(said)
    if exit_code == 0:
        assert outcome.status == "completed"
        return
    assert outcome.status == "failed"
    code_told = exit_code if exit_code > 0 else 128 - exit_code
    assert f"code {exit_code}" in outcome.error or f"code {code_told}" in outcome.error
    assert "pairio_warm" not in outcome.console.decode()  # a trace begins with the app's own lines


async def test_a_job_that_ignores_signals_is_killed_with_all_it_started(warm: Lab) -> None:
    cancel = trio.Event()
    code = (
        "import signal, subprocess, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "for n in range(3): subprocess.Popen(['sleep', '4711'], start_new_session=True)\n"
        "open('/tmp/working/begun', 'w').close()\n"
        "time.sleep(600)"
    )
    spec = warm.spec(code)
    outcomes = []

    async def run() -> None:
        outcomes.append(await warm.run_spec(spec, cancel))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until((spec.work_dir / "tmp/working/begun").exists)
        cancel.set()
    assert outcomes[0].status == "canceled"
    assert not [p for p in psutil.process_iter() if _command(p)[-2:] == ["sleep", "4711"]]


async def test_bounds_of_time_and_memory_hold(warm: Lab) -> None:
    late = await warm.run("import time; print('begun', flush=True); time.sleep(60)", time_ms=700)
    assert (late.status, late.console) == ("failed", b"begun\n")
    assert "time" in late.error
    full = await warm.run("x = bytearray(400 << 20); import time; time.sleep(60)", memory_mib=200)
    assert full.status == "failed"
    assert "memory" in full.error


@pytest.mark.parametrize("groups", [True, False], ids=["groups", "watched"])
@pytest.mark.parametrize("mode", ["on", "single"])
async def test_a_bound_on_processes_holds(tmp_path: Path, mode: str, groups: bool) -> None:
    """Also against a job that goes on when it is refused more."""
    code = """
import time
for count in range(1000):  # it stops by itself
    try:
        if os.fork() == 0: time.sleep(20); os._exit(0)
    except OSError:
        print(count, flush=True); time.sleep(20)
time.sleep(20)
"""
    async with lab(tmp_path, WarmLimits(mode=mode), groups=groups) as made:
        await made.warm("zygote" if mode == "on" else "single")
        outcome = await made.run(code, bounds=JobBounds(processes=30))
        assert outcome.status in ("failed", "infra")  # the bound is tighter than the network's
        seen = re.search(r"processes: (\d+) of at most 30", outcome.error)
        assert seen, outcome.error
        assert int(seen[1]) <= 2 * (30 + 64)
        assert made.status["jobsWarm"] == 1


# -- nothing of another job -------------------------------------------------------------------

TRACES = """
import ctypes, socket, subprocess, tempfile
libc = ctypes.CDLL(None)
planted = {}
def plant(name, do):
    try: do(); planted[name] = True
    except OSError as error: planted[name] = error.strerror
for folder in ("/tmp", "/tmp/working", "/dev/shm", "/tmp/out"):
    plant(folder, lambda: open(folder + "/trace", "w").write("secret"))
for folder in ("/dev", "/in", "/app", "/usr", "/etc", "/", "/opt/pairio", "/proc"):
    plant(folder, lambda: open(folder.rstrip("/") + "/trace", "w"))
os.environ["TRACE"] = "secret"
App.trace = sys.trace = "secret"
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0trace"); abstract.listen()
tcp = socket.socket(); tcp.bind(("127.0.0.1", 4711)); tcp.listen()
planted["shm"] = libc.shmget(4711, 4096, 0o1666) >= 0
planted["msg"] = libc.msgget(4711, 0o1666) >= 0
planted["sem"] = libc.semget(4711, 1, 0o1666) >= 0
queue = libc.syscall(240, b"trace", os.O_CREAT | os.O_RDWR, 0o666, None)
subprocess.Popen(["sleep", "4712"], start_new_session=True)
os.open("/tmp/working/trace", os.O_RDWR)
"""
HUNT = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
fds = [n for n in os.listdir("/proc/self/fd") if int(n) > 2]
found = ["descriptors"] if len(fds) > 1 else []  # one is that of the folder
def tried(name, do):
    try: do()
    except OSError: return
    found.append(name)
for folder in ("/tmp", "/tmp/working", "/dev/shm", "/tmp/out", "/dev", "/in", "/app", "/"):
    if "trace" in os.listdir(folder): found.append(folder)
environ = open("/proc/self/environ", "rb").read()
if "TRACE" in os.environ or b"secret" in environ: found.append("environ")
if hasattr(App, "trace") or hasattr(sys, "trace"): found.append("variable")
def connect(family, address):
    socket.socket(family).connect(address)
tried("abstract socket", lambda: connect(socket.AF_UNIX, "\\0trace"))
tried("port", lambda: connect(socket.AF_INET, ("127.0.0.1", 4711)))
for name, call in (("shm", libc.shmget), ("sem", libc.semget)):
    if call(4711, 1, 0) >= 0: found.append(name)
if libc.msgget(4711, 0) >= 0: found.append("msg")
if libc.syscall(240, b"trace", os.O_RDWR, 0, None) >= 0: found.append("mqueue")
others = [p for p in os.listdir("/proc") if p.isdigit() and p not in ("1", str(os.getpid()))]
if others: found.append("processes " + " ".join(others))
"""


async def test_job_2_finds_nothing_of_job_1(warm: Lab) -> None:
    planted = await warm.told(TRACES + "print(json.dumps(planted))")
    for folder in ("/tmp", "/tmp/working", "/dev/shm", "/tmp/out"):
        assert planted[folder] is True  # else there would be nothing to find
    for folder in ("/dev", "/in", "/app", "/usr", "/etc", "/", "/opt/pairio"):
        assert planted[folder] == "Read-only file system", folder
    assert planted["shm"] and planted["msg"] and planted["sem"]
    assert await warm.told(HUNT + "print(json.dumps(found))") == []


async def test_a_job_finds_nothing_of_one_that_runs_beside_it(zygote: Lab) -> None:
    code = TRACES + "open('/tmp/working/begun', 'w').close()\nimport time; time.sleep(600)"
    spec, cancel = zygote.spec(code), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(zygote.run_spec, spec, cancel)
        await until((spec.work_dir / "tmp/working/begun").exists)
        assert await zygote.told(HUNT + "print(json.dumps(found))") == []
        cancel.set()
    assert zygote.status["jobsWarm"] == 2


async def test_the_hunt_finds_traces_that_are_there(zygote: Lab) -> None:
    """In one job, so that it is known to look in the right places."""
    found = await zygote.told(TRACES + HUNT + "print(json.dumps(found))")
    wanted = {"/tmp", "/tmp/working", "/dev/shm", "variable", "abstract socket", "port"}
    wanted |= {"shm", "sem", "msg", "descriptors", "environ"}
    assert wanted <= {*found}
    assert any(entry.startswith("processes") for entry in found)


ESCAPES = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    result = libc.syscall(*args)
    return "worked" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def tried(do):
    try: do()
    except OSError as error: return errno.errorcode[error.errno]
    except ValueError: return "EPERM"
    return "worked"
said = {
    "memory of process 1": tried(lambda: open("/proc/1/mem", "r+b")),
    "descriptors of process 1": tried(lambda: os.listdir("/proc/1/fd")),
    "environment of process 1": tried(lambda: open("/proc/1/environ").read()),
    "root of process 1": tried(lambda: os.listdir("/proc/1/root")),
    "unshare user": call(272, 0x10000000), "unshare mount": call(272, 0x20000),
    "unshare net": call(272, 0x40000000),
    "mount": call(165, b"x", b"/tmp", b"tmpfs", 0, None), "umount": call(166, b"/in", 2),
    "pivot_root": call(155, b"/", b"/tmp"), "chroot": call(161, b"/tmp"),
    "open_tree": call(428, -100, b"/", 1), "move_mount": call(429, -1, b"", -100, b"/in", 4),
    "mount_setattr": call(442, -100, b"/", 0, None, 0),
    "setns": call(308, -1, 0), "ptrace": call(101, 16, 1, 0, 0), "bpf": call(321, 0, None, 0),
    "keyctl": call(250, 0, 0), "io_uring": call(425, 1, None),
    "userfaultfd": call(323, 0), "perf": call(298, None, 0, -1, -1, 0),
    "clone3": call(435, None, 0), "pidfd_getfd": call(438, 1, 1, 0),
    "clone user": call(56, 0x10000000 | 17, None, None, None, None),
    "raise a limit": tried(lambda: __import__("resource").setrlimit(7, (1 << 20, 1 << 20))),
    "outside": tried(lambda: socket.create_connection(("10.77.0.1", 80), 2)),
    "sysctl": tried(lambda: os.write(os.open("/proc/sys/kernel/ns_last_pid", os.O_WRONLY), b"77")),
}
for number in (9, 15, 19, 2, 1, 12):
    os.kill(1, number)
print(json.dumps(said))
"""


async def test_a_job_cannot_get_at_what_keeps_it(warm: Lab) -> None:
    said = await warm.told(ESCAPES)
    assert [name for name in said if said[name] == "worked"] == []
    assert said["memory of process 1"] == said["descriptors of process 1"] == "EACCES"
    assert said["unshare user"] == said["mount"] == said["move_mount"] == "EPERM"
    assert said["clone3"] == "ENOSYS"


async def test_randomness_and_process_numbers_differ(zygote: Lab) -> None:
    zygote.app(imports="import random, uuid, tempfile; random.random(); tempfile.mktemp()")
    await zygote.warm()
    code = (
        "print(json.dumps([random.random(), uuid.uuid4().hex, tempfile.mktemp(), os.getpid(),"
        " os.urandom(8).hex()]))"
    )
    first, second = await zygote.told(code), await zygote.told(code)
    assert zygote.status["jobsWarm"] == 2
    assert not {*first} & {*second}


async def test_a_job_may_have_processes_threads_and_connections(zygote: Lab) -> None:
    code = """
import multiprocessing, socket, subprocess, threading
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
thread = threading.Thread(target=lambda: client.send(b"x")); thread.start(); thread.join()
with multiprocessing.get_context("fork").Pool(2) as pool:
    squares = pool.map(abs, [-1, -2])
ptys = len(os.openpty())
print(json.dumps([squares, subprocess.check_output(["echo", "x"], text=True), ptys]))
"""
    assert await zygote.told(code) == [[1, 2], "x\n", 2]


async def test_nothing_of_its_making_closes_what_a_job_opens(zygote: Lab) -> None:
    """The processes that it was forked from had descriptors of the same numbers."""
    zygote.app(
        before="""
worker = sys.modules.get("_pairio_warm")
if worker is not None:
    take_environment = worker._take_environment
    def opens(job):
        worker.opened = [os.open("/app/main.py", os.O_RDONLY) for _ in range(20)]
        take_environment(job)
    worker._take_environment = opens
"""
    )
    await zygote.warm()
    code = """
import gc
gc.collect()
opened = sys.modules["_pairio_warm"].opened
print(json.dumps([len(opened), [n for n in opened if not os.path.exists(f"/proc/self/fd/{n}")]]))
"""
    assert await zygote.told(code) == [20, []]
    assert zygote.status["jobsWarm"] == 1


MODELS = """
from pairio.sdk import BaseModel
class Pair(BaseModel):
    one: int
    other: int = 2
"""


async def test_pydantic_is_there_from_the_start_once_a_job_needed_it(warm: Lab) -> None:
    """An app that only declares its contexts never pays for it, one that uses it pays once."""
    seen = "print(json.dumps(['pydantic' in sys.modules"
    warm.app(imports=MODELS)
    kind = warm.status["workers"]
    await warm.warm(kind)
    assert await warm.told(seen + "]))") == [False]
    assert await warm.told(seen + ", Pair(one=1).model_dump()]))") == [
        False,
        {"one": 1, "other": 2},
    ]
    await until(lambda: _latest(warm).pydantic)
    replaced = _latest(warm)
    assert await warm.told(seen + ", Pair(one=3).other]))") == [True, 2]
    assert warm.status["jobsWarm"] == 3
    assert _latest(warm) is replaced


async def test_a_job_that_only_says_that_it_imported_pydantic_gains_nothing(zygote: Lab) -> None:
    zygote.app(imports="sys.modules['pydantic'] = None  # as if it were not there")
    await zygote.warm()
    await zygote.told("os.symlink('/', '/tmp/pydantic-was-imported'); print(1)")
    await until(lambda: _latest(zygote).pydantic)
    assert await zygote.told("print(2)") == 2
    assert zygote.status["jobsWarm"] == 2


# -- what apps do when they are imported ---------------------------------------------------------


@pytest.mark.parametrize(
    ("imports", "said"),
    [
        ("import mmap; shared = mmap.mmap(-1, 4096)", "shared memory"),
        ("kept = open('/app/main.py')", "open descriptors"),
        ("import socket; pair = socket.socketpair()", "open descriptors"),
        (
            "import threading, time\n"
            "threading.Thread(target=time.sleep, args=(999,), daemon=True).start()",
            "1 threads",
        ),
        ("import subprocess; left = subprocess.Popen(['sleep', '999'])", "1 processes"),
        (
            "import ctypes; assert ctypes.CDLL(None).unshare(0x40000000) == 0"
            " or 'single' in os.environ.get('X', 'single')",
            "namespaces",
        ),
    ],
)
async def test_what_import_leaves_for_all_jobs_is_noticed(
    tmp_path: Path, imports: str, said: str
) -> None:
    async with lab(tmp_path) as made:
        made.app(imports=imports)
        status = await made.warm("single")
        assert said in status["why"], status
        assert await made.told("print(1)") == 1
        assert made.status["jobsWarm"] == 1


@pytest.mark.parametrize("later_s", [0.0, 1.0], ids=["at once", "later"])
async def test_what_waits_for_a_job_and_opens_more_gets_none(
    tmp_path: Path, later_s: float
) -> None:
    """It is looked at before a job is there, and again just before it is let go."""
    before = f"""
import time
worker = sys.modules.get("_pairio_warm")
if worker is not None:
    received = worker._received
    def opens(link):
        time.sleep({later_s})
        worker.kept = [open("/app/main.py") for _ in range(3)]
        return received(link)
    worker._received = opens
"""
    async with lab(tmp_path) as made:
        made.app(before=before)
        await made.warm()
        with trio.fail_after(PATIENCE_S):
            while "descriptors" not in made.status["why"]:  # one may come while none is ready
                await trio.sleep(2 * later_s)
                assert await made.told("print(1)") == 1
        assert made.status["jobsWarm"] == 0


async def test_import_cannot_get_out_of_the_sandbox(tmp_path: Path) -> None:
    tries = """
import ctypes, socket
libc = ctypes.CDLL(None)
at_import = {
    "user namespace": libc.unshare(0x10000000), "clone": libc.syscall(56, 0x10000011, 0, 0, 0, 0),
    "mount": libc.mount(b"x", b"/tmp", b"tmpfs", 0, None), "bpf": libc.syscall(321, 0, 0, 0),
    "write /app": os.access("/app", os.W_OK) - 1, "write /dev": os.access("/dev", os.W_OK) - 1,
    "network": len(open("/proc/net/dev").read().splitlines()) - 4,
    "other jobs": len(os.listdir("/in")) - 1,
    "processes": 2 - len([p for p in os.listdir("/proc") if p.isdigit()]) - 1,
}
"""
    async with lab(tmp_path) as made:
        made.app(imports=tries)
        await made.warm()
        assert {*(await made.told("print(json.dumps(at_import))")).values()} == {-1}


async def test_what_import_put_into_tmp_is_hidden_and_reads_nothing_of_a_job(zygote: Lab) -> None:
    zygote.app(
        imports="open('/tmp/left', 'w').close(); open('/dev/shm/left', 'w').close()\n"
        "seen = [os.listdir('/in'), 'JOB_ID' in os.environ, 'PAIRIO_JOB_FILE' in os.environ]"
    )
    await zygote.warm()
    told = await zygote.told(
        "print(json.dumps([seen, os.path.exists('/tmp/left'), os.path.exists('/dev/shm/left')]))"
    )
    assert told == [[[], False, False], False, False]


@pytest.mark.parametrize(
    ("imports", "why"),
    [
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
        ("os.environ['JOB_ID']", "KeyError: 'JOB_ID'"),
        ("sys.exit(0) if 'PAIRIO_JOB_FILE' not in os.environ else None", "without App.run()"),
    ],
)
async def test_an_app_that_cannot_wait_for_jobs_runs_cold_and_it_is_said(
    tmp_path: Path, imports: str, why: str
) -> None:
    async with lab(tmp_path) as made:
        made.app(imports=imports)
        await made.run("pass")
        status = await made.settled("cold")
        assert why in status["why"], status
        await made.run("pass")
        assert (made.status["jobsWarm"], made.status["jobsCold"]) == (0, 2)


@pytest.mark.parametrize(("asked", "kind"), [("single", "single"), ("off", "cold")])
async def test_an_app_may_ask_for_other_workers(tmp_path: Path, asked: str, kind: str) -> None:
    async with lab(tmp_path) as made:
        made.app(attributes=json.dumps({"warm": asked}))
        await made.run("pass")
        assert "asks for" in (await made.settled(kind))["why"]
        assert await made.told("print(2)") == 2


async def test_a_warm_up_is_called_once_before_any_job(zygote: Lab) -> None:
    zygote.app(
        imports="calls = []",
        before="app.set_warm_up(lambda: calls.append(sorted(os.listdir('/in'))))",
    )
    await zygote.warm()
    assert [await zygote.told("print(json.dumps(calls))") for _ in range(2)] == [[[]], [[]]]


async def test_a_program_in_another_language_runs_cold(zygote: Lab) -> None:
    bundle = zygote.specs["bundle"]
    (bundle / "main.sh").write_text("#!/bin/sh\necho hello\n")
    (bundle / "main.sh").chmod(0o755)
    outcome = await zygote.run("", executable="main.sh")
    assert outcome.console == b"hello\n"
    assert zygote.status["jobsWarm"] == 0


# -- deaths -------------------------------------------------------------------------------------


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _warmed(made: Lab) -> Warmed:
    found = [e.warmed for e in made.runner.pool._entries.values() if e.warmed is not None]
    return found[0]


def _latest(made: Lab) -> Warmed:
    """Return those of the app that came last."""
    found = [*made.runner.pool._entries.values()][-1].warmed
    assert found is not None
    return found


def _host(made: Lab) -> psutil.Process:
    return psutil.Process(_warmed(made).host.pid)


async def _while_running(made: Lab, do: Any) -> Any:
    """Do something to a running job; return its outcome."""
    spec = made.spec(
        "import subprocess\n"
        "subprocess.Popen(['sleep', '4713'], start_new_session=True)\n"
        "open('begun', 'w').close()\n"
        "import time; time.sleep(600)"
    )
    outcomes = []

    async def run() -> None:
        outcomes.append(await made.run_spec(spec))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until((spec.work_dir / "tmp/working/begun").exists)
        do(spec)
    return outcomes[0]


async def test_the_death_of_a_zygote_is_the_nodes_loss_and_another_takes_its_place(
    zygote: Lab,
) -> None:
    bwrap = next(p for p in _host(zygote).children() if p.name() == "bwrap")
    outcome = await _while_running(zygote, lambda _: bwrap.kill())
    assert outcome.status == "infra"
    assert "gone" in outcome.error
    await zygote.told("print(3)")
    await until(lambda: zygote.status["workers"] == "zygote")
    assert await zygote.told("print(3)") == 3


async def test_the_death_of_a_host_takes_its_workers_with_it(warm: Lab) -> None:
    host = _host(warm)
    below = host.children(recursive=True)
    outcome = await _while_running(warm, lambda _: host.kill())
    assert outcome.status == "infra", (outcome.error, warm.status["why"], warm.status["jobsWarm"])
    await until(lambda: not any(_lives(p) for p in below))
    assert await warm.told("print(4)") == 4  # cold, or warm again


ENDLESS = "import time\nif 'PAIRIO_JOB_FILE' not in os.environ: time.sleep(3600)"


@pytest.mark.parametrize("mode", ["on", "single"])
async def test_an_import_that_never_ends_does_not_hold_up_a_node_that_stops(
    tmp_path: Path, mode: str
) -> None:
    async with lab(tmp_path, WarmLimits(mode=mode, import_s=3600)) as made:
        hosts = await _importing(made)
        below = [p for host in hosts for p in (host, *host.children(recursive=True))]
        with trio.fail_after(PATIENCE_S):  # of an hour, or two
            made.stop()
            await made.stopped.wait()
    await until(lambda: not any(_lives(p) for p in below))
    assert list((tmp_path / "warm").iterdir()) == []


@pytest.mark.parametrize("mode", ["on", "single"])
async def test_an_import_that_never_ends_ends_with_a_node_that_is_killed(
    tmp_path: Path, mode: str
) -> None:
    """Its end of the channel is all that a host has of a node."""
    ours, host = _started_host()
    async with lab(tmp_path) as made:
        made.app(ENDLESS)
        config = made.runner.config(made.spec("pass")) | {
            "folder": str(tmp_path / "worker"),
            "pydantic": False,
            "single_because": "" if mode == "on" else "it is tried",
            "import_s": 3600,
            "workers": 1,
        }
        ours.sendall(json.dumps(config).encode() + b"\n")
        process = psutil.Process(host.pid)
        await until(lambda: any(p.name().startswith("python") for p in _below(process)))
        below = _below(process)
        ours.close()
        await until(lambda: host.poll() is not None)
        await until(lambda: not any(_lives(p) for p in below))
    assert not (tmp_path / "worker").exists()


def _started_host() -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    ours, theirs = socket.socketpair()
    with theirs:
        argv = [sys.executable, "-I", "-S", "-c", _MAIN, str(ROOT / "pairio_node")]
        return ours, subprocess.Popen(argv, stdin=theirs.fileno())


async def _importing(made: Lab) -> list[psutil.Process]:
    """Have an app that is never imported to its end; return its host once it is at it."""
    made.app(ENDLESS)
    await made.run("pass")
    found: list[psutil.Process] = []

    def begun() -> bool:
        found[:] = [p for p in _below(psutil.Process()) if _MAIN in _command(p)]
        return any(p.name().startswith("python") for host in found for p in _below(host))

    await until(begun)
    return found


def _below(process: psutil.Process) -> list[psutil.Process]:
    return list(process.children(recursive=True))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it went between the two questions
        return False


def test_a_sandbox_has_no_death_signal_before_it_sets_its_own() -> None:
    """One that came between bubblewrap's fork and its word to its child left the child for ever."""
    said_fd, out_fd = os.pipe()
    code = (
        "import ctypes; n = ctypes.c_int(-1);"
        "ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    )
    argv = [sys.executable, "-c", code]
    part = {"argv": argv, "environment": {}, "files": [], "user": 0, "filter": ""}
    sandbox = Sandbox(part, {}, out_fd, [])
    os.close(out_fd)
    with open(said_fd) as said:
        assert said.read() == "0\n"
    sandbox._process.wait()
    os.close(sandbox.fd)


def test_a_worker_whose_host_has_gone_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("while True: pass")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = {"script": str(tmp_path / "app.py"), "single": False, "middle": "", "strict": ""}
    ours.send(json.dumps(config).encode())
    ours.close()
    program = "from pairio_node.runner.zygote.inside import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program, "-1", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        timeout=20,
        capture_output=True,
    )
    theirs.close()
    assert (run.returncode, run.stderr) == (70, b"")


async def test_a_supervisor_that_is_killed_takes_its_job_with_it(warm: Lab) -> None:
    def kill(spec: Any) -> None:
        os.kill(supervisor_of(spec.work_dir), signal.SIGKILL)

    outcome = await _while_running(warm, kill)
    assert outcome.status == "infra"
    await until(lambda: not [p for p in psutil.process_iter() if _command(p)[-1:] == ["4713"]])


async def test_a_job_outlives_its_node_and_is_adopted(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        await made.warm()
        spec = made.spec(
            "open('begun', 'w').close()\n"
            "import time\n"
            "while not os.path.exists('go'): time.sleep(0.02)\n"
            "print('done')",
            restart_grace_s=60,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.runner.run, spec, trio.Event())
            await until((spec.work_dir / "tmp/working/begun").exists)
            nursery.cancel_scope.cancel()  # as a node that stops
        host = _host(made)
        _warmed(made).host.close()
        await trio.sleep(0.3)
        assert is_supervised(spec.work_dir)
        (spec.work_dir / "tmp/working/go").touch()
        outcome = await made.runner.resume(spec, trio.Event())
        assert (outcome.status, outcome.console) == ("completed", b"done\n")
        await until(lambda: not _lives(host))


async def test_nothing_is_left_when_the_node_lets_go(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        await made.warm()
        below = [_host(made), *_host(made).children(recursive=True)]
        assert len(below) > 3
    await until(lambda: not any(_lives(p) for p in below))
    assert list((tmp_path / "warm").iterdir()) == []


# -- bounds -------------------------------------------------------------------------------------


async def test_a_zygote_is_replaced_after_so_many_jobs(tmp_path: Path) -> None:
    async with lab(tmp_path, WarmLimits(jobs_max=2)) as made:
        await made.warm()
        first = _host(made).pid
        for number in range(3):
            assert await made.told(f"print({number})") == number
        made.runner.pool._wake.set()
        await until(lambda: made.status["workers"] == "zygote" and _host(made).pid != first)
        assert await made.told("print(9)") == 9


async def test_the_least_recently_used_goes_beyond_the_bound(tmp_path: Path) -> None:
    async with lab(tmp_path, WarmLimits(apps_max=1)) as made:
        await made.warm()
        first = _host(made)
        made.app()
        await made.warm()
        made.runner.pool._wake.set()
        await until(lambda: not first.is_running() or first.status() == "zombie")
        assert [s["workers"] for s in made.runner.pool.status()] == ["zygote", "cold"]


async def test_what_is_idle_goes(tmp_path: Path) -> None:
    async with lab(tmp_path, WarmLimits(idle_s=2)) as made:
        await made.run("pass")
        await until(lambda: made.status["why"] == "not used for long")
        assert made.status["workers"] == "cold"
        await until(lambda: list((tmp_path / "warm").iterdir()) == [])


# -- a node that is not root --------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="then all of the other tests are of that")
def test_a_node_that_is_not_root_has_them_too(tmp_path: Path) -> None:
    """It has no uid to drop to, and hands out mounts from a user namespace of its own."""
    with tempfile.TemporaryDirectory(prefix="pairio-warm-") as folder:
        os.chown(folder, 65534, 65534)
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": folder,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # One that this user may start by himself, not only root for him.
        again = (
            f"import subprocess, sys; assert sys.version_info[:2] == {sys.version_info[:2]};"
            " subprocess.check_call([sys.executable, '-c', '1'])"
        )
        pythons = [
            path
            for path in (sys.executable, "/usr/bin/python3")
            if not subprocess.run([*become, path, "-c", again], capture_output=True).returncode
        ]
        if not pythons:
            pytest.skip("no interpreter of this version that another user may start")
        python = pythons[0]
        run = subprocess.run(
            [*become, python, "-m", "tests.integration.warm_unprivileged", folder],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    for kind in KINDS:
        assert found[kind]["said"] == [["content", 65534, []]] * 2
        assert found[kind]["status"]["workers"] == kind
        assert found[kind]["needs"] == ["content", len("correct horse"), 1]
    # A worker that was started ahead cannot be shown files of the owner's: such a job is cold.
    assert found["zygote"]["status"]["jobsWarm"] == 2
    assert found["single"]["status"]["jobsWarm"] == 0
