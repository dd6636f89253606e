"""A job whose input is a URL: its computing node fetches it, if its owner's rules allow it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, StartNode

pytestmark = pytest.mark.integration
TEXT = "hello, URL\n"


class _Quiet(SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Web:
    """Files on loopback, and what was asked for."""

    def __init__(self, files: Path) -> None:
        self.asked: list[str] = []
        handler = type("Handler", (_Quiet,), {"asked": self.asked})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=files))
        self.host = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    files = tmp_path / "files"
    files.mkdir()
    (files / "x.txt").write_text(TEXT)
    made = Web(files)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def _node(start_node: StartNode, tmp_path: Path, name: str, allow: str) -> RunningNode:
    (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / name / "node.toml").write_text(f"allow_hosts = {json.dumps([allow])}\n")
    return start_node(name)


def _with_service(node: RunningNode) -> RunningNode:
    assert node.cli("service", "create", "lab").returncode == 0
    made = node.cli("app", "install", "lab", "hello_world")
    assert made.returncode == 0, made.stderr
    return node


def _count(node: RunningNode, url: str, *more: str) -> Any:
    return node.cli("submit", "hello_world/count_characters", "-i", f"input={url}", *more)


def test_the_computing_node_fetches_what_its_owner_allows(
    start_node: StartNode, web: Web, tmp_path: Path
) -> None:
    node = _with_service(_node(start_node, tmp_path, "a", web.host))
    url = f"http://{web.host}/x.txt"
    done = _count(node, url, "--wait", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    output = node.cli("get", done.stdout.strip(), "output")
    assert json.loads(output.stdout) == {"count": len(TEXT)}
    assert web.asked == ["/x.txt"]
    again = json.loads(_count(node, url, "--wait", "--json").stdout)
    assert (again["cached"], web.asked) == (True, ["/x.txt"])
    definition = again["jobDefinition"]["inputFiles"]
    assert definition == [{"name": "input", "fileBaseName": "x.txt", "url": url}]


@pytest.mark.parametrize("path", ["/x.txt", "/missing.txt"])
def test_what_is_refused_or_missing_is_named_and_the_job_does_not_complete(
    path: str, start_node: StartNode, web: Web, tmp_path: Path
) -> None:
    allow = web.host if path == "/missing.txt" else "elsewhere.example"
    node = _with_service(_node(start_node, tmp_path, "a", allow))
    waited = _count(node, f"http://{web.host}{path}", "--wait", "--timeout", "3")
    assert waited.returncode != 0
    job_id = waited.stdout.strip()
    ends = time.monotonic() + 20
    while "input 'input'" not in (shown := node.cli("job", "show", job_id).stdout):
        assert time.monotonic() < ends, shown
        time.sleep(0.1)  # house: waiting for another process
    if path == "/x.txt":
        assert "127.0.0.1 is a loopback address" in shown
        assert "allow_hosts in node.toml" in shown
        assert web.asked == []
    else:
        assert "the server answers 404" in shown
    assert node.cli("job", "why", job_id).stdout.split(":")[0] != "completed"
    assert json.loads(node.cli("job", "show", job_id, "--json").stdout)["status"] != "completed"


def test_a_node_that_is_allowed_computes_for_one_that_is_not(
    start_node: StartNode, web: Web, tmp_path: Path
) -> None:
    strict = _with_service(start_node("strict"))
    _node(start_node, tmp_path, "free", web.host).stop()  # its home, with an identity
    free = start_node("free", "--bootstrap", strict.info["addresses"][0])
    peer = free.info["peerId"]
    added = strict.cli("service", "grant", "lab", peer, "--roles", "submit,compute")
    assert added.returncode == 0, added.stderr
    done = _count(strict, f"http://{web.host}/x.txt", "--wait", "--timeout", "60", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["computeNodeId"] == peer


def test_a_url_with_a_password_is_refused_at_once(start_node: StartNode) -> None:
    node = _with_service(start_node("a", "--no-compute"))
    run = _count(node, "https://user:secret@data.example/x.txt")
    assert (run.returncode, run.stdout) == (1, "")
    assert "holds a user or a password" in run.stderr
    assert "secret" not in run.stderr


def test_a_job_that_waits_for_a_silent_server_is_canceled_at_once(
    start_node: StartNode, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connected to, never accepted
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        node = _with_service(_node(start_node, tmp_path, "a", host))
        job_id = _count(node, f"http://{host}/x.txt").stdout.strip()
        _until(node, "running", 1)
        assert node.cli("job", "cancel", job_id).returncode == 0
        _until(node, "running", 0)
        ends = time.monotonic() + 60
        while list((node.home / "jobs").iterdir()):  # it goes a moment later
            assert time.monotonic() < ends
            time.sleep(0.05)


def _until(node: RunningNode, what: str, value: int) -> None:
    ends = time.monotonic() + 10
    while (found := node.get("status")[what]) != value:
        assert time.monotonic() < ends, f"{what} is {found}"
        time.sleep(0.05)  # house: waiting for another process
