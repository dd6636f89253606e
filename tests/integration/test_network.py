"""The main job, for real: nodes, a service, an app, jobs, the cache, and mistakes."""

import glob
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.conftest import RunningNode, StartNode
from tests.integration.pages import alike, blocks
from tests.integration.waiting import until

pytestmark = pytest.mark.integration
README = Path(__file__).parents[2] / "README.md"
EXAMPLES = Path(__file__).parents[2] / "examples"


def _with_service(node: RunningNode) -> RunningNode:
    assert node.cli("service", "create", "hello_world_service").returncode == 0
    made = node.cli("app", "install", "hello_world_service", "hello_world")
    assert made.returncode == 0, made.stderr
    return node


def test_the_demo_runs_and_leaves_nothing() -> None:
    before = set(glob.glob("/tmp/pairio-demo-*"))
    demo = subprocess.run(
        [sys.executable, "-c", "from pairio_cli.main import main; main()", "demo"],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stdout.count("from the cache, nothing ran") == 3
    shown = next(block.text for block in blocks(README) if block.kind == "console")
    assert _lines_of_demo(demo.stdout) == _lines_of_demo(shown.removeprefix("$ make demo\n"))
    assert set(glob.glob("/tmp/pairio-demo-*")) == before


def _lines_of_demo(text: str) -> list[str]:
    """What the demo says, whichever node computed what, in whichever sandbox."""
    varies = r"(?<=computed by )node\d|(?<=run jobs with )\w+"
    return [re.sub(varies, "...", alike(line)) for line in text.splitlines()]


def test_the_three_examples_run_unmodified(start_node: StartNode) -> None:
    node = _with_service(start_node("a"))
    for name in ("example1.py", "example2.py", "example3.py"):
        run = subprocess.run(
            [sys.executable, str(EXAMPLES / name)],
            env=node.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        assert "http://127.0.0.1:" in run.stdout
    count = node.cli("submit", "hello_world/count_characters", "-i", f"input={__file__}", "--wait")
    assert count.returncode == 0, count.stderr
    output = node.cli("get", count.stdout.strip(), "output")
    assert json.loads(output.stdout) == {"count": len(Path(__file__).read_text())}


def test_a_job_survives_a_restart_of_its_node(start_node: StartNode) -> None:
    node = _with_service(start_node("a"))
    first = node.cli("submit", "hello_world/hello_world_2", "--wait", "--json")
    job = json.loads(first.stdout)
    assert job["status"] == "completed"
    assert job["jobDefinitionHash"] == job["jobId"]
    assert node.stop() == 0
    again = start_node("a")
    assert again.info["peerId"] == node.info["peerId"]
    shown = json.loads(again.cli("job", "show", job["jobId"], "--json").stdout)
    assert shown["outputFileResults"] == job["outputFileResults"]
    hit = json.loads(again.cli("submit", "hello_world/hello_world_2", "--json").stdout)
    assert hit["cached"] is True


def test_in_a_line_the_far_end_learns_and_dials_and_computes(start_node: StartNode) -> None:
    middle = _with_service(start_node("b", "--no-compute"))
    address = middle.info["addresses"][0]
    a = start_node("a", "--no-compute", "--bootstrap", address)
    c = start_node("c", "--bootstrap", address)
    for node in (a, c):
        added = middle.cli(
            "service", "add-member", "hello_world_service", node.info["peerId"],
            "--roles", "submit,compute",
        )  # fmt: skip
        assert added.returncode == 0, added.stderr
    until(
        "A knows the service",
        lambda: any(s["apps"] for s in a.get("services")["services"]),
    )
    ran = a.cli("submit", "hello_world/hello_world_1", "--wait", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["computeNodeId"] == c.info["peerId"]
    status = c.get("status")
    assert a.info["peerId"] in status["peers"]


def test_a_node_made_member_by_a_stranger_runs_nothing(start_node: StartNode) -> None:
    victim = start_node("victim")
    stranger = start_node("stranger", "--no-compute", "--bootstrap", victim.info["addresses"][0])
    _with_service(stranger)
    stranger.cli(
        "service", "grant", "hello_world_service", victim.info["peerId"],
        "--roles", "compute",
    )  # fmt: skip
    until("offered", lambda: victim.get("offers")["offers"])
    waiting = stranger.cli("submit", "hello_world/hello_world_1", "--wait", "--timeout", "2")
    assert waiting.returncode == 4
    assert victim.get("services")["services"] == []
    assert victim.cli("service", "accept", "hello_world_service").returncode == 0
    assert victim.cli("service", "accept", "hello_world_service").returncode == 0
    done = stranger.cli("submit", "hello_world/hello_world_1", "--wait", "--timeout", "30")
    assert done.returncode == 0, done.stderr


def test_without_a_sandbox_the_demo_says_so_and_runs_its_own_app(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("prlimit", "sh", "env"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    demo = subprocess.run(
        [sys.executable, "-c", "from pairio_cli.main import main; main()", "demo"],
        env={**os.environ, "PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "without a sandbox" in demo.stdout
    assert "apt install bubblewrap" in demo.stdout


def test_whom_all_others_dialled_finds_them_again_from_another_port(start_node: StartNode) -> None:
    """Nobody knows where it is now, and it never dialled anybody."""
    first = start_node("first", "--no-compute")
    other = start_node("other", "--no-compute")
    assert first.cli("service", "create", "lab").returncode == 0
    link = first.cli("service", "invite", "lab").stdout.split()[0]
    assert other.cli("join", link).returncode == 0

    def remembered() -> list[tuple[str]]:
        with closing(sqlite3.connect(first.home / "node.db")) as db:
            return db.execute("select peer from known_peers").fetchall()

    until("it is remembered", lambda: (other.info["peerId"],) in remembered(), 60)
    before = first.info["addresses"]
    assert first.stop() == 0
    first = start_node("first", "--no-compute")
    assert first.info["addresses"] != before
    until("found", lambda: other.info["peerId"] in first.get("status")["peers"], 60)


def test_a_node_that_comes_back_on_another_port_finds_its_members_again(
    start_node: StartNode,
) -> None:
    first = _with_service(start_node("a", "--no-compute"))
    second = start_node("b", "--bootstrap", first.info["addresses"][0])
    peers = (second.info["peerId"], "--roles", "submit,compute")
    first.cli("service", "grant", "hello_world_service", *peers)
    until("B takes part", lambda: second.get("services")["services"])
    done = first.cli("submit", "hello_world/hello_world_1", "--wait")
    assert done.returncode == 0, done.stderr
    assert second.stop() == 0
    again = start_node("b")  # no --bootstrap, another port
    assert again.info["addresses"] != second.info["addresses"]
    until("A has B again", lambda: again.info["peerId"] in first.get("status")["peers"])
    ran = first.cli("submit", "hello_world/hello_world_1", "-p", "name=again", "--wait")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["submit", "hello_world/nothing"], "has no processor 'nothing'"),
        (["submit", "nothing/hello_world_1"], "has no app 'nothing'"),
        (["submit", "hello_world/hello_world_1", "-p", "nmae=x"], "no parameter 'nmae'"),
        (["submit", "hello_world/count_characters"], "input 'input' is missing"),
        (["submit", "hello_world/count_characters", "-i", "input=/nowhere"], "no file '/nowhere'"),
        (
            ["submit", "hello_world/count_characters", "-i", "input=x://y",
             "-p", "include_whitespace=7"],
            "no source",
        ),
        (["submit", "hello_world/hello_world_1", "--service", "lab"], "no service 'lab'"),
        (["job", "show", "bafyreigone"], "no job 'bafyreigone'"),
        (["app", "install", "hello_world_service", "/nowhere"], "no app '/nowhere'"),
        (["service", "add-member", "hello_world_service", "x", "--roles", "submit"], "peer id"),
        (["service", "create", "a/b"], "slash"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_words(
    arguments: list[str], says: str, one_node: RunningNode
) -> None:
    run = one_node.cli(*arguments)
    assert run.returncode == 1, run.stderr
    assert run.stdout == ""
    assert says in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture
def one_node(start_node: StartNode) -> RunningNode:
    return _with_service(start_node("a"))


def test_without_a_node_the_hint_is_to_start_one(tmp_path: Path) -> None:
    nobody = RunningNode(tmp_path, None, {})  # type: ignore[arg-type]
    run = nobody.cli("service", "ls")
    assert run.returncode == 1
    assert "hint: start one: pairio-node run" in run.stderr


def test_two_nodes_on_one_home_and_a_taken_port_are_errors_in_words(one_node: RunningNode) -> None:
    second = one_node.cli("run", program="node_main")
    assert second.returncode == 1
    assert "runs on" in second.stderr
    other = RunningNode(one_node.home.with_name("other"), one_node.process, {})
    port = one_node.info["addresses"][0].split("/")[4]
    taken = other.cli("run", "--listen", f"/ip4/127.0.0.1/tcp/{port}", program="node_main")
    assert taken.returncode == 1
    assert "cannot listen" in taken.stderr
    assert "Traceback" not in taken.stderr + second.stderr


def test_a_corrupt_home_is_named_and_left_alone(tmp_path: Path) -> None:
    node = RunningNode(tmp_path / "home", None, {})  # type: ignore[arg-type]
    assert node.cli("init", program="node_main").returncode == 0
    (node.home / "node.db").write_bytes(b"garbage" * 1000)
    run = node.cli("run", program="node_main")
    assert (run.returncode, "cannot be used" in run.stderr) == (1, True)
    assert (node.home / "node.db").read_bytes().startswith(b"garbage")
    (node.home / "node.key").write_text("garbage")
    run = node.cli("init", program="node_main")
    assert (run.returncode, "is not a node key" in run.stderr) == (1, True)


def test_the_api_refuses_strangers(one_node: RunningNode) -> None:
    url = one_node.info["apiUrl"]
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
    ):
        request = urllib.request.Request(f"{url}/api/v1/status", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as answer:
            assert answer.status == status
            answer.read()


def test_a_link_opens_a_page_once_and_outputs_need_their_key(one_node: RunningNode) -> None:
    job = json.loads(one_node.cli("submit", "hello_world/hello_world_2", "--wait", "--json").stdout)
    link = one_node.cli("open", job["jobId"], "--print").stdout.strip()
    import http.cookiejar

    opener = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    )
    with opener.open(link) as page:
        text = page.read().decode()
    assert "completed" in text
    assert "hello_world_2" in text
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(link)
    caught.value.close()
    url = job["outputFileResults"][0]["url"]
    request = urllib.request.Request(url, headers={"Range": "bytes=7-11"})
    with urllib.request.urlopen(request) as part:
        assert (part.status, part.read()) == (206, b"world")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url[:-1] + "x")
    with caught.value as answer:
        assert answer.status == 403


def test_garbage_from_the_network_leaves_the_node_alive(one_node: RunningNode) -> None:
    port = int(one_node.info["addresses"][0].split("/")[4])
    for raw in (
        b"\0" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"x" * 200,
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(raw)
    assert one_node.get("status")["peerId"] == one_node.info["peerId"]
