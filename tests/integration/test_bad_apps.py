"""Bad apps are inputs too: what one does, what its user is told, that nothing of it is left, and
that the next job runs as if nothing had been. In the real sandbox, with each way of holding memory.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest
import trio

from pairio_node.runner import BwrapRunner, Launcher, RunOutcome, RunOutput
from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.cgroups import probe
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.runfile import read
from tests.integration.bombs import FORK_BOMB, RESTLESS_BOMB, THREAD_BOMB
from tests.integration.chaos.nodes import Node
from tests.integration.runner_lab import script_spec
from tests.integration.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]
MIB = 2**20
#: How memory can be held here: by looking always, by the kernel where it lets us.
HELD = ["watchdog", *(["cgroup"] if probe()[0] == "cgroup" else [])]
ONE_OUTPUT = (RunOutput("output", "output.txt"),)
#: Tighter than what every node has: passing it is this node's, not the job's.
TIGHT = JobBounds(disk_bytes=100 * MIB, output_bytes=100 * MIB, files=2000)


class Ward:
    """Runs bad apps one after another, and looks each time that nothing is left."""

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        self._launcher = launcher
        self._folder = folder
        self.runner = BwrapRunner(launcher)

    async def run(
        self, script: str, program: str = "main.py", mode: int = 0o755, **changes: object
    ) -> RunOutcome:
        """Return how a script ended, after looking that nothing but its folder is left."""
        folder = self._folder / os.urandom(4).hex()
        folder.mkdir()
        spec = script_spec(folder, script, program=program, **changes)
        (spec.bundle / program).chmod(mode)
        outcome = await self.runner.run(spec, trio.Event())
        made = (read(spec.work_dir).group or {"folders": {}})["folders"].values()
        assert not [name for name in made if Path(name).exists()]
        with trio.fail_after(60):
            while self._jobs_left():  # noqa: ASYNC110 - other processes
                await trio.sleep(0.02)
        return outcome

    def _jobs_left(self) -> list[psutil.Process]:
        """Supervisors are children of the launcher, and all that a job starts is below them."""
        alive = str(self._launcher.alive)
        helpers = [p for p in psutil.Process().children() if alive in p.cmdline()]
        return [left for helper in helpers for left in helper.children(recursive=True)]

    async def works_on(self) -> None:
        """The next job runs, and nothing of those before stays when their folders go."""
        outcome = await self.run("echo fine > /tmp/out/0", "main.sh", outputs=ONE_OUTPUT)
        assert (outcome.status, outcome.outputs["output"].read_text()) == ("completed", "fine\n")
        for folder in list(self._folder.iterdir()):
            await trio.to_thread.run_sync(remove_tree, folder)
            assert not folder.exists()


@pytest.fixture(params=HELD)
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launcher]:
    with Launcher(tmp_path / "alive", with_groups=request.param == "cgroup") as made:
        assert made.memory_limit == request.param
        yield made


@pytest.fixture
async def ward(launcher: Launcher, tmp_path: Path) -> AsyncIterator[Ward]:
    (tmp_path / "ward").mkdir()
    made = Ward(launcher, tmp_path / "ward")
    yield made
    await made.works_on()


async def test_an_app_without_its_executable(ward: Ward) -> None:
    outcome = await ward.run("", executable="/app/nothing")
    assert (outcome.status, outcome.error) == ("failed", "the app has no executable '/app/nothing'")


async def test_an_executable_that_nobody_may_execute(ward: Ward) -> None:
    outcome = await ward.run("true", "main.sh", mode=0o644)
    assert outcome.status == "failed"
    assert re.match(r"the job exited with code 126: .*Permission denied", outcome.error), outcome


async def test_an_import_that_fails(ward: Ward) -> None:
    outcome = await ward.run("import no_such_module")
    assert outcome.error == (
        "the job exited with code 1: ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert b"Traceback" in outcome.console


async def test_a_fork_bomb(ward: Ward) -> None:
    outcome = await ward.run(FORK_BOMB, memory_mib=8192, cpu_millicores=2000)
    assert outcome.status == "failed"
    assert re.fullmatch(r"processes: 5\d\d of at most 512", outcome.error), outcome.error
    assert outcome.usage["processes_peak"] >= 200


async def test_a_bomb_of_threads(ward: Ward) -> None:
    outcome = await ward.run(THREAD_BOMB, memory_mib=4096)
    assert outcome.status == "failed"
    assert re.fullmatch(r"processes: 5\d\d of at most 512", outcome.error), outcome.error


async def test_processes_that_end_before_they_are_found(ward: Ward) -> None:
    outcome = await ward.run(RESTLESS_BOMB, time_ms=1500)
    assert (outcome.status, outcome.error) == ("failed", "time: ran 1.5 s of at most 1.5 s")
    assert b"began" in outcome.console


_KILLER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from pairio_node.runner.supervisor.processes import sandboxes_below, send

def inside(namespace):
    found = 0
    for process in Path("/proc").iterdir():
        try:
            found += process.name.isdigit() and os.readlink(process / "ns/pid") == namespace
        except OSError:
            pass
    return found

argv = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc"]
job = subprocess.Popen([*argv, "--", sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
for _ in range(20):
    assert job.stdout.readline() == b"began\\n"
namespace = os.readlink(f"/proc/{sandboxes_below(os.getpid())[0]}/ns/pid")
assert namespace != os.readlink("/proc/self/ns/pid")
print("before:", inside(namespace) > 1)
send(sandboxes_below(os.getpid()), signal.SIGKILL)
ends = time.monotonic() + 10  # by itself it would end after 20 s
while (job.poll() is None or inside(namespace)) and time.monotonic() < ends:
    time.sleep(0.05)
print("after:", inside(namespace))
"""


def test_a_sandbox_ends_with_its_first_process_whoever_is_found_inside() -> None:
    argv = [sys.executable, "-c", _KILLER, RESTLESS_BOMB]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout, ended.stderr) == ("before: True\nafter: 0\n", "")


async def test_ten_gigabytes_in_one_output(ward: Ward) -> None:
    script = """
with open("/tmp/out/0", "wb") as file:
    for _ in range(10_000):
        file.write(bytes(2**20))
"""
    outcome = await ward.run(script, outputs=ONE_OUTPUT, bounds=TIGHT)
    assert outcome.status in ("failed", "infra")  # the file's bound, or all that it takes
    assert re.search(
        r"a file of a job may have 100 MiB|disk: used .* of at most 100", outcome.error
    )
    assert outcome.usage.get("disk_peak_bytes", 0) < 300 * MIB


async def test_ten_gigabytes_in_many_files(ward: Ward) -> None:
    script = """
for number in range(10_000):
    with open(f"/tmp/out/{number}", "wb") as file:
        file.write(bytes(2**20))
"""
    outcome = await ward.run(script, outputs=ONE_OUTPUT, bounds=TIGHT)
    assert outcome.status == "infra"
    assert re.fullmatch(r"disk: used .* of at most 100 MiB", outcome.error), outcome.error


async def test_a_full_tmp_whose_files_have_no_names(ward: Ward) -> None:
    script = """
import os, time
held = []
for number in range(40):
    held.append(os.open(f"/tmp/{number}", os.O_CREAT | os.O_WRONLY))
    os.unlink(f"/tmp/{number}")
    for _ in range(10):
        os.write(held[-1], bytes(2**20))
time.sleep(60)
"""
    outcome = await ward.run(script, bounds=TIGHT)
    assert outcome.status == "infra"
    assert re.fullmatch(r"disk: used .* of at most 100 MiB", outcome.error), outcome.error


async def test_more_files_than_anybody_needs(ward: Ward) -> None:
    script = "import time\nfor n in range(20_000): open(f'/tmp/{n}', 'w').close()\ntime.sleep(60)"
    outcome = await ward.run(script, bounds=TIGHT)
    assert (outcome.status, outcome.error) == ("infra", "files: 2001 of at most 2000")


async def test_folders_deeper_than_any_path(ward: Ward) -> None:
    script = "import os, time\nfor _ in range(2500): os.mkdir('d'); os.chdir('d')\ntime.sleep(60)"
    outcome = await ward.run(script)
    assert outcome.status == "failed"
    assert outcome.error == "folders: 200 levels deep of at most 199"


async def test_an_output_of_nothing_that_claims_a_terabyte(ward: Ward) -> None:
    outcome = await ward.run("truncate -s 1T /tmp/out/0", "main.sh", outputs=ONE_OUTPUT)
    assert outcome.status == "failed"
    assert re.search(r"File too large|more than the 100 GiB", outcome.error), outcome.error
    script = "mkdir /tmp/out/0; for n in 1 2 3; do truncate -s 90M /tmp/out/0/$n; done"
    outcome = await ward.run(script, "main.sh", outputs=ONE_OUTPUT, bounds=TIGHT)
    assert outcome.status == "infra"
    assert outcome.error == "outputs: they have 270 MiB of at most 100 MiB"


async def test_a_gigabyte_of_console(ward: Ward) -> None:
    script = "echo first; yes | head -c 1000000000; echo last"
    outcome = await ward.run(script, "main.sh", time_ms=110_000)
    assert outcome.status == "completed", outcome.error
    assert outcome.console.startswith(b"first\n")
    assert outcome.console.endswith(b"last\n")
    assert b"bytes left out" in outcome.console
    assert len(outcome.console) < 1_100_000


async def test_a_console_that_is_no_text_and_moves_cursors(ward: Ward) -> None:
    script = r"printf '\377\376\033]0;yours\007\033[2J'; printf 'it \033[31mbroke\r' >&2; exit 3"
    outcome = await ward.run(script, "main.sh")
    assert outcome.error == "the job exited with code 3: \ufffd\ufffdit broke"
    assert b"\xff\xfe\x1b]0;yours" in outcome.console  # kept as it is, shown by `printable`


async def test_four_children_that_take_memory(ward: Ward) -> None:
    script = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        held = b"x" * (200 * 2**20)
        time.sleep(60)
for _ in range(4):
    os.wait()
"""
    outcome = await ward.run(script, memory_mib=256)
    assert (outcome.status, outcome.limit) == ("failed", "memory_mib=256")
    assert re.fullmatch(r"memory: used .* of at most 256 MiB", outcome.error), outcome.error
    assert outcome.usage["memory_peak_bytes"] >= 256 * MIB


async def test_children_that_share_memory_do_not_count_it_again(ward: Ward) -> None:
    script = """
import os, time
held = bytearray(150 * 2**20)
for _ in range(4):
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)
for _ in range(4):
    os.wait()
"""
    outcome = await ward.run(script, memory_mib=400)
    assert outcome.status == "completed", outcome.error


async def test_a_hundred_thousand_open_files(ward: Ward) -> None:
    outcome = await ward.run("held = [open('/dev/null') for _ in range(100_000)]")
    assert outcome.status == "failed"
    assert "Too many open files" in outcome.error
    assert outcome.error.endswith("(a job may have 4096 files open at a time)")


async def test_an_app_that_ignores_signals_and_waits_for_ever(ward: Ward) -> None:
    script = """
import signal, time
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
while True:
    time.sleep(1000)
"""
    outcome = await ward.run(script, time_ms=500)
    assert (outcome.status, outcome.error) == ("failed", "time: ran 0.5 s of at most 0.5 s")


async def test_an_app_that_writes_its_output_and_hangs(ward: Ward) -> None:
    script = "echo done > /tmp/out/0; sleep 1000"
    outcome = await ward.run(script, "main.sh", outputs=ONE_OUTPUT, time_ms=500)
    assert (outcome.status, outcome.error) == ("failed", "time: ran 0.5 s of at most 0.5 s")


async def test_an_app_that_ends_while_its_children_go_on(ward: Ward) -> None:
    script = "(setsid sh -c 'trap \"\" TERM HUP; sleep 1000' &); sleep 0.1; echo over"
    with trio.fail_after(60):  # the child holds the console open, too
        outcome = await ward.run(script, "main.sh")
    assert (outcome.status, outcome.console) == ("completed", b"over\n")


async def test_an_app_that_stops_itself_is_ended_by_its_time(ward: Ward) -> None:
    outcome = await ward.run("kill -STOP $$", "main.sh", time_ms=500)
    assert outcome.error == "time: ran 0.5 s of at most 0.5 s"


@pytest.mark.parametrize("whom", ["1", "-1", "$PPID", "0"])
async def test_an_app_that_kills_what_it_can(whom: str, ward: Ward) -> None:
    outcome = await ward.run(f"kill -9 -- {whom} || true; exit 5", "main.sh")
    assert outcome.status == "failed"
    assert re.match(r"the job exited with code (5|137|-9): ", outcome.error), outcome.error


async def test_an_app_that_deletes_its_folders(ward: Ward) -> None:
    outcome = await ward.run("echo x > /tmp/out/0; rm -rf /tmp/working", "main.sh")
    assert outcome.status == "completed"
    script = "echo x > /tmp/out/0; rm -rf /tmp/* 2> /dev/null; true"
    outcome = await ward.run(script, "main.sh", outputs=ONE_OUTPUT)
    assert (outcome.status, outcome.error) == (
        "failed",
        "output 'output' was not made, or is neither file nor folder",
    )


@pytest.mark.parametrize(
    "instead",
    [
        "os.mkfifo('/tmp/out/0')",
        "socket.socket(socket.AF_UNIX).bind('/tmp/out/0')",
        "os.symlink('/etc/passwd', '/tmp/out/0')",
        "os.symlink('/dev/zero', '/tmp/out/0')",
    ],
)
async def test_an_output_that_is_no_file(instead: str, ward: Ward) -> None:
    outcome = await ward.run(f"import os, socket\n{instead}", outputs=ONE_OUTPUT)
    assert (outcome.status, outcome.error) == (
        "failed",
        "output 'output' was not made, or is neither file nor folder",
    )


async def test_a_device_cannot_be_made(ward: Ward) -> None:
    script = "import os, stat\nos.mknod('/tmp/out/0', stat.S_IFBLK | 0o666, os.makedev(254, 0))"
    outcome = await ward.run(script, outputs=ONE_OUTPUT)
    assert "PermissionError" in outcome.error


async def test_names_with_newlines_and_sequences(ward: Ward) -> None:
    script = """
import os
os.mkdir("/tmp/out/0")
for folder in ("/tmp/out/0", "/tmp/other"):
    open(f"{folder}/two\\nlines\\x1b[2J", "w").close()
"""
    outcome = await ward.run(script, outputs=ONE_OUTPUT)
    assert outcome.status == "completed", outcome.error
    assert list(outcome.outputs) == ["output", "other/two\nlines\x1b[2J"]


@pytest.mark.parametrize("content", ["b'{' * 50_000_000", "b'\\xff\\x00'", "b'[' * 100_000"])
async def test_a_result_file_of_garbage_means_nothing(content: str, ward: Ward) -> None:
    script = "for name in ('/tmp/result.json', '/tmp/working/result.json', '/tmp/job.json'):\n"
    script += f"    open(name, 'wb').write({content})\nopen('/tmp/out/0', 'w').write('x')"
    outcome = await ward.run(script, outputs=ONE_OUTPUT)
    assert outcome.status == "completed", outcome.error


async def test_usage_is_recorded_whatever_happened(ward: Ward) -> None:
    script = """
import sys, time
data = b"x" * (60 * 2**20)
open("/tmp/file", "wb").write(data)
open("/tmp/file", "rb").read()
ends = time.monotonic() + 3
while time.monotonic() < ends: pass
sys.exit(4)
"""
    outcome = await ward.run(script)
    used = outcome.usage
    assert used["wall_ms"] >= 3000
    assert used["cpu_ms"] >= 300  # of 3 s, on a machine with much else to do
    assert used["memory_peak_bytes"] > 60 * MIB
    assert used["read_bytes"] > 60 * MIB
    assert used["written_bytes"] >= 60 * MIB
    assert used["disk_peak_bytes"] >= 60 * MIB
    assert used["processes_peak"] >= 1
    samples = [json.loads(line) for line in outcome.samples.splitlines()]
    assert len(samples) >= 2
    assert samples[-1]["job"]["memory_bytes"] > 40 * MIB
    assert samples[-1]["job"]["cpu_ms"] >= samples[0]["job"]["cpu_ms"]


async def test_a_job_gets_the_processors_that_it_asked_for(launcher: Launcher, ward: Ward) -> None:
    if launcher.memory_limit == "cgroup":
        script = "import os, time\nfor _ in range(3): os.fork()\n"
        script += "ends = time.monotonic() + 2\nwhile time.monotonic() < ends: pass"
        outcome = await ward.run(script, cpu_millicores=500)
        assert outcome.usage["cpu_ms"] < outcome.usage["wall_ms"] * 0.9
    else:
        script = "import os; print(len(os.sched_getaffinity(0)), os.environ['MKL_NUM_THREADS'])"
        outcome = await ward.run(script, cpu_millicores=1000)
        assert outcome.console == b"1 1\n"


# -- what a user sees ---------------------------------------------------------------------------

_APP = {
    "name": "bad",
    "description": "Does what it is told",
    "processors": [
        {
            "name": "bad",
            "description": "Does what it is told",
            "label": "Bad",
            "image": "",
            "executable": "/app/run.py",
            "inputs": [],
            "outputs": [{"name": "output", "description": "A word"}],
            "parameters": [{"name": "script", "type": "str", "description": "What to do"}],
            "attributes": [],
        }
    ],
}
_MAIN = """
import json, os, sys
job = json.load(open(os.environ["PAIRIO_JOB_FILE"]))
open(job["outputs"][0]["path"], "w").write("fine")
exec(job["parameters"][0]["value"])
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node("n", tmp_path)
    made.settings |= {"job_disk_gb": 0.05}
    app = tmp_path / "app"
    app.mkdir()
    (app / "spec.json").write_text(json.dumps(_APP))
    (app / "run.py").write_text(_MAIN)
    try:
        made.start()
        made.wait_ready()
        made.call("POST", "services", {"name": "lab"})
        made.call("POST", "services/lab/apps", {"source": str(app)})
        yield made
    finally:
        made.kill()


def _job(
    node: Node,
    script: str,
    memory_gb: float = 1,
    *,
    enough: Callable[[dict[str, Any]], bool] = lambda job: job["status"] in ("completed", "failed"),
) -> dict[str, Any]:
    """Submit a script and return its job when it is over, or as far as is `enough`."""
    body = {
        "jobDefinition": {
            "appName": "bad",
            "processorName": "bad",
            "inputFiles": [],
            "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
            "parameters": [{"name": "script", "value": script}],
        },
        "requiredResources": {"numCpus": 1, "numGpus": 0, "memoryGb": memory_gb, "timeSec": 60},
    }
    request = node.call("POST", "jobs", body)["requestId"]

    def over() -> dict[str, Any]:
        job = dict(node.call("GET", f"jobs/{request}"))
        return job if enough(job) else {}

    return until("the job is over", over, 110)


def test_a_node_tells_what_happened_and_goes_on(node: Node) -> None:
    assert node.call("GET", "status")["memoryLimit"] in ("cgroup", "watchdog")
    hog = _job(node, "held = b'x' * (400 * 2**20)\nimport time; time.sleep(30)", memory_gb=0.25)
    assert re.fullmatch(r"memory: used .* of at most 256 MiB", hog["error"]), hog["error"]
    assert hog["usage"]["memory_peak_bytes"] >= 256 * MIB

    loud = _job(node, r"print('\x1b]0;mine\x07it \x1b[2Jbroke'); sys.exit(3)")
    assert loud["error"] == "the job exited with code 3: it broke"

    long = _job(node, "import time; time.sleep(3.5)")
    assert (long["status"], long["error"]) == ("completed", None)
    assert {"cpu_ms", "wall_ms", "read_bytes", "disk_peak_bytes"} <= set(long["usage"])
    samples = urlopen(long["resourceUtilizationLogUrl"]).read().splitlines()
    assert 2 <= len(samples) <= 60
    assert {"timestamp", "cpu", "virtual_memory", "job"} <= set(json.loads(samples[0]))

    fill = "for n in range(500): open(f'/tmp/{n}', 'wb').write(bytes(2**20))"
    script = f"{fill}\nimport time; time.sleep(30)"
    full = _job(node, script, enough=lambda job: any(a["ended"] for a in job["attempts"]))
    assert full["attempts"][0]["ended"] == "infra"  # another node may have more room
    reason = full["attempts"][0]["reason"]
    assert re.fullmatch(r"disk: used .* of at most 51.2 MiB", reason), reason
    node.call("POST", f"jobs/{full['requestId']}/cancel")

    assert _job(node, "print('works on')")["status"] == "completed"
    until("no folder is left", lambda: list((node.home / "jobs").iterdir()) == [], 60)
