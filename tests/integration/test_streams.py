"""Streamed inputs with real nodes: h5py, ffmpeg and plain requests read from inside the sandbox."""

import io
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import imageio_ffmpeg
import numpy
import pytest

from tests.integration.conftest import RunningNode, launch
from tests.integration.range_web import RangeWeb, range_web

pytestmark = pytest.mark.integration
SIZE = 12_000_000
NUMBERS = b"".join(b"%010d" % i for i in range(SIZE // 10))
PROCESSORS = ("by_requests", "by_h5py", "by_ffmpeg", "slowly", "by_download", "outside")


@pytest.fixture(scope="module")
def web() -> Iterator[RangeWeb]:
    with range_web() as made:
        made.files["/numbers.txt"] = NUMBERS
        yield made


def _app(path: Path) -> Path:
    shutil.copytree(Path(__file__).parent / "streaming", path)
    processors = [
        {
            "name": name,
            "executable": "main.py",
            "inputs": [{"name": "data", "stream": True}],
            "outputs": [{"name": "output"}],
        }
        for name in PROCESSORS
    ]
    (path / "spec.json").write_text(json.dumps({"name": "streaming", "processors": processors}))
    return path


def _ready(home: Path, web: RangeWeb) -> RunningNode:
    home.mkdir(mode=0o700)
    (home / "node.toml").write_text(f"allow_hosts = {json.dumps([web.host])}\n")
    made = launch(home)
    assert made.cli("service", "create", "lab").returncode == 0
    installed = made.cli("app", "install", "lab", str(_app(home.with_name("app"))))
    assert installed.returncode == 0, installed.stderr
    return made


@pytest.fixture(scope="module")
def node(web: RangeWeb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    made = _ready(tmp_path_factory.mktemp("node") / "a", web)
    yield made
    made.stop()


def _submit(node: RunningNode, name: str, source: str) -> "subprocess.CompletedProcess[str]":
    return node.cli("submit", f"streaming/{name}", "-i", f"data={source}", "--wait", "--json")


def _run(node: RunningNode, name: str, source: str) -> tuple[Any, Any]:
    """Run a processor; return what it wrote, and its job."""
    done = _submit(node, name, source)
    assert done.returncode == 0, f"{done.stdout} {done.stderr}"
    job = json.loads(done.stdout)
    return json.loads(node.cli("get", job["jobId"], "output").stdout), job


def _hdf5() -> bytes:
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        traces = numpy.arange(64 * 65536, dtype="int32").reshape(64, 65536)
        file.create_dataset("traces", data=traces, chunks=(1, 65536))
    return made.getvalue()


def _video(path: Path) -> bytes:
    """A film whose index is at its end: it cannot be read from front to back."""
    source = ["-f", "lavfi", "-i", "testsrc=duration=3:size=320x240:rate=10"]
    argv = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, "-c:v", "mpeg4", str(path)]
    subprocess.run(argv, check=True)
    return path.read_bytes()


def test_plain_requests_read_a_range_and_the_whole(node: RunningNode, web: RangeWeb) -> None:
    told, job = _run(node, "by_requests", web.url("/numbers.txt"))
    assert told == [206, NUMBERS[1000:1010].decode(), SIZE]
    [source] = job["sources"]
    assert (source["name"], source["size"], source["etag"]) == ("data", SIZE, '"one"')
    assert len(source["sha256"]) == 64
    again = json.loads(_submit(node, "by_requests", web.url("/numbers.txt")).stdout)
    assert (again["cached"], again["sources"]) == (True, job["sources"])
    shown = node.cli("job", "show", job["jobId"]).stdout
    assert "data by URL, content of 20" in shown


def test_h5py_reads_the_parts_it_needs(node: RunningNode, web: RangeWeb) -> None:
    web.files["/traces.h5"] = data = _hdf5()
    sent_bytes = web.sent_bytes
    told, job = _run(node, "by_h5py", web.url("/traces.h5"))
    assert told == [["traces"], list(range(40 * 65536, 40 * 65536 + 5))]
    assert web.sent_bytes - sent_bytes < len(data) // 4
    [source] = job["sources"]
    assert source["sha256"] is None
    assert 0 < sum(stop - start for start, stop in source["ranges"]) < len(data) // 4


def test_ffmpeg_reads_a_film_whose_index_is_at_its_end(
    node: RunningNode, web: RangeWeb, tmp_path: Path
) -> None:
    web.files["/film.mp4"] = _video(tmp_path / "film.mp4")
    told, _ = _run(node, "by_ffmpeg", web.url("/film.mp4"))
    assert told == 30


def test_an_input_by_cid_is_read_in_the_same_way(
    node: RunningNode, tmp_path: Path, web: RangeWeb
) -> None:
    (tmp_path / "numbers.txt").write_bytes(NUMBERS)
    asked = len(web.asked)
    told, job = _run(node, "by_requests", str(tmp_path / "numbers.txt"))
    assert told == [206, NUMBERS[1000:1010].decode(), SIZE]
    assert (job["sources"], len(web.asked)) == ([], asked)


def test_of_data_by_reference_on_another_node_only_what_is_read_comes(
    node: RunningNode, tmp_path: Path
) -> None:
    """The node `node` computes; the file lies with another, which does not."""
    size = 100 * 2**20
    path = tmp_path / "large.txt"
    path.write_bytes((NUMBERS * (size // len(NUMBERS) + 1))[:size])
    other = launch(tmp_path / "other", "--no-compute", "--bootstrap", node.info["addresses"][0])
    try:
        granted = node.cli("service", "grant", "lab", other.info["peerId"], "--roles", "submit")
        assert granted.returncode == 0, granted.stderr
        _wait_for(lambda: any(s["apps"] for s in other.get("services")["services"]))
        before = node.get("status")["blocks"]["blocks_received"]
        sent = other.cli("submit", "streaming/slowly", "-i", f"data={path}", "--nocopy")
        assert sent.returncode == 0, sent.stderr
        job = _wait_for(lambda: _completed(other, sent.stdout.strip()))
        assert job["computeNodeId"] == node.info["peerId"]
        told = json.loads(other.cli("get", job["jobId"], "output").stdout)
        assert told == (NUMBERS[:10] + NUMBERS[9_000_000:9_000_010]).decode()
        came = node.get("status")["blocks"]["blocks_received"] - before
        assert came < 30, "of a hundred"
    finally:
        other.stop()


def test_the_sdk_downloads_it_whole(node: RunningNode, web: RangeWeb) -> None:
    told, _ = _run(node, "by_download", web.url("/numbers.txt"))
    assert told == SIZE


def test_the_job_reaches_nothing_else(node: RunningNode, web: RangeWeb) -> None:
    told, _ = _run(node, "outside", web.url("/numbers.txt"))
    assert told == []


def test_a_file_that_changes_while_the_job_reads_it_gives_no_result(
    node: RunningNode, web: RangeWeb
) -> None:
    job = _begun(node, web, "/changing.txt")
    web.files["/changing.txt"], web.etag = NUMBERS[::-1], '"two"'
    attempts = _wait_for(lambda: _ended(node, job))
    assert attempts[0]["ended"] == "infra"
    assert "changed while the job read it" in attempts[0]["reason"]
    node.cli("job", "cancel", job)


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_goes_on_reading_after_a_restart_of_its_node(
    kill: signal.Signals, web: RangeWeb, tmp_path: Path
) -> None:
    node = _ready(tmp_path / "a", web)
    job = _begun(node, web, f"/{kill.name}.txt")
    node.process.send_signal(kill)  # its watchdog, which takes it along
    node.process.wait(20)
    assert node.process.stdout is not None
    node.process.stdout.close()
    again = launch(node.home)
    try:
        shown = _wait_for(lambda: _completed(again, job))
        assert len(shown["attempts"]) == 1
        output = json.loads(again.cli("get", job, "output").stdout)
        assert output == (NUMBERS[:10] + NUMBERS[9_000_000:9_000_010]).decode()
    finally:
        again.stop()


def _begun(node: RunningNode, web: RangeWeb, path: str) -> str:
    web.files[path], web.etag = NUMBERS, '"one"'
    done = node.cli("submit", "streaming/slowly", "-i", f"data={web.url(path)}")
    job = done.stdout.strip()
    _wait_for(lambda: "read the first" in node.cli("job", "logs", job).stdout)
    return job


def _ended(node: RunningNode, job: str) -> Any:
    attempts = json.loads(node.cli("job", "show", job, "--json").stdout)["attempts"]
    return attempts if attempts and attempts[0]["ended"] else None


def _completed(node: RunningNode, job: str) -> Any:
    shown = json.loads(node.cli("job", "show", job, "--json").stdout)
    return shown if shown["status"] == "completed" else None


def _wait_for(look: Callable[[], Any]) -> Any:
    ends = time.monotonic() + 120
    while not (found := look()):
        assert time.monotonic() < ends
        time.sleep(0.2)  # house: waiting for another process
    return found
