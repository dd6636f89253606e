"""Results made known through the node's Kubo: which, how they are found, and how they are read."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pairio_node.blocks.kubo import KuboApi, Provider
from pairio_node.ipfs_settings import parse_ipfs
from tests.integration.conftest import RunningNode, StartNode
from tests.integration.kubo import Kubo, StartKubo
from tests.integration.waiting import until

pytestmark = pytest.mark.integration
GREET = "hello_world/hello_world_2"


def _done(node: RunningNode, *arguments: str) -> str:
    ran = node.cli(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _job(node: RunningNode, name: str) -> Any:
    return json.loads(_done(node, "submit", GREET, "-p", f"name={name}", "--wait", "--json"))


def _with_service(node: RunningNode) -> RunningNode:
    _done(node, "service", "create", "lab")
    _done(node, "app", "install", "lab", "hello_world")
    return node


def _ipfs(node: RunningNode) -> Any:
    return node.get("status")["ipfs"]


def _pins(kubo: Kubo) -> set[str]:
    said = kubo.cli("pin", "ls", "--type=recursive", "--names").stdout.decode()
    return {line.split()[0] for line in said.splitlines() if line.endswith(" pairio")}


def _results(kubo: Kubo) -> list[str]:
    return kubo.cli("files", "ls", "/pairio/results").stdout.decode().split()


def _finds(kubo: KuboApi, job: str, peer: str, found: dict[str, Provider]) -> bool:
    found.update({provider.peer: provider for provider in kubo.providers(job, 8, 2.0)})
    return peer in found


def test_a_public_result_is_found_by_its_job_id_and_read_by_any_kubo(
    start_kubo: StartKubo, start_node: StartNode, record_property: Callable[[str, object], None]
) -> None:
    kubo, stranger = start_kubo("kubo"), start_kubo("stranger")
    stranger.connect(kubo)
    node = _with_service(start_node("node", "--ipfs", kubo.url))
    private = _job(node, "Ada")
    assert private["status"] == "completed"
    _done(node, "service", "policy", "lab", "--results", "public")
    until("published", lambda: _ipfs(node)["published"] == 1)
    job_id = private["jobId"]
    output = private["outputFileResults"][0]["cid"]

    # exactly what docs/ipfs.md says, on the daemon that keeps the node's blocks
    assert kubo.cli("cat", output).stdout == b"Hello, Ada!"
    definition = json.loads(kubo.cli("dag", "get", job_id).stdout)
    assert (definition["app"], definition["processor"]) == ("hello_world", "hello_world_2")
    result = kubo.cli("files", "read", f"/pairio/results/{job_id}").stdout.decode().strip()
    assert json.loads(kubo.cli("dag", "get", result).stdout)["job"] == {"/": job_id}
    said = json.loads(kubo.cli("dag", "get", f"{result}/outputs/output").stdout)
    assert said == {"base_name": "output", "cid": {"/": output}, "size": 11}
    data = kubo.cli("dag", "get", "--output-codec=raw", f"{result}/outputs/output/cid").stdout
    assert data == b"Hello, Ada!"
    assert _pins(kubo) == {result}

    # and on a daemon that is only connected with it
    bob = _job(node, "Bob")
    until("provided", lambda: _ipfs(node)["provided"] == 2)
    record_property("provide_ms", _ipfs(node)["provideMs"])
    asked = KuboApi(parse_ipfs(stranger.url))
    for job in (job_id, bob["jobId"]):
        found: dict[str, Provider] = {}
        until("found", partial(_finds, asked, job, kubo.peer_id, found))
        assert set(found) <= {kubo.peer_id, node.info["peerId"]}  # the node says so itself, too
        addresses = found[kubo.peer_id].addresses
        assert all(address.startswith("/ip4/127.0.0.1/") for address in addresses)
    assert stranger.cli("cat", output).stdout == b"Hello, Ada!"
    assert json.loads(stranger.cli("dag", "get", job_id).stdout) == definition
    assert json.loads(stranger.cli("dag", "get", f"{result}/outputs/output").stdout) == said

    # what is private again is withdrawn
    _done(node, "service", "policy", "lab", "--results", "members")
    until("withdrawn", lambda: _ipfs(node)["published"] == 0)
    assert (_pins(kubo), _results(kubo)) == (set(), [])
    assert kubo.cli("cat", output).stdout == b"Hello, Ada!"  # it is still the node's
    kubo.cli("repo", "gc")
    assert _done(node, "get", job_id, "output") == "Hello, Ada!"


def test_a_private_result_is_neither_pinned_nor_announced_unless_its_owner_says_all(
    start_kubo: StartKubo, start_node: StartNode, tmp_path: Path
) -> None:
    kubo, stranger = start_kubo("kubo"), start_kubo("stranger")
    stranger.connect(kubo)
    asked = KuboApi(parse_ipfs(stranger.url))
    node = _with_service(start_node("node", "--ipfs", kubo.url))
    job = _job(node, "Ada")
    published = _done(node, "publish", _job(node, "Bob")["jobId"])  # one, by its owner's word
    until("the published one", lambda: _ipfs(node)["provided"] == 1)
    assert (_ipfs(node)["published"], len(_pins(kubo)), published != "") == (1, 1, True)
    assert job["jobId"] not in _results(kubo)
    for cid in (job["jobId"], job["outputFileResults"][0]["cid"]):
        assert asked.providers(cid, 8, 2.0) == []

    assert node.stop() == 0
    (node.home / "node.toml").write_text(f'[ipfs]\napi = "{kubo.url}"\npublish = "all"\n')
    again = start_node("node")
    until("all", lambda: _ipfs(again)["published"] == 2)
    assert job["jobId"] in _results(kubo)
    until("found", lambda: asked.providers(job["jobId"], 8, 2.0))


def test_with_publish_none_even_a_public_result_is_not_told(
    start_kubo: StartKubo, start_node: StartNode, tmp_path: Path
) -> None:
    kubo = start_kubo()
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "node.toml").write_text(f'[ipfs]\napi = "{kubo.url}"\npublish = "none"\n')
    node = _with_service(start_node("node"))
    _done(node, "service", "policy", "lab", "--results", "public")
    asked = KuboApi(parse_ipfs(kubo.url))
    for name in ("Ada", "Bob"):  # two looks at what is new
        job = _job(node, name)["jobId"]
        until("public", lambda job=job: asked.block_size(job))  # type: ignore[misc]
    assert (_ipfs(node)["published"], _pins(kubo)) == (0, set())


def test_a_daemon_that_announces_everything_is_said(
    start_kubo: StartKubo, start_node: StartNode
) -> None:
    kubo = start_kubo(Provide={"Strategy": "all"})
    node = start_node("node", "--ipfs", kubo.url)
    log = node.home.with_name("node.log")
    until("note", lambda: "announces more than what is published" in log.read_text())
