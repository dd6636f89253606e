"""Joining behind a relay, for real: nodes that listen nowhere, and nodes behind routers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairio_node.home import Home
from pairio_protocol.links import Link
from tests.integration.conftest import RunningNode, StartNode
from tests.integration.nats import Nats, why_no_nats
from tests.integration.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
SERVICE = "lab"
GREET = "hello_world/hello_world_1"
CIRCUIT = "/p2p-circuit/p2p/"


def _done(node: RunningNode, *arguments: str) -> str:
    ran = node.cli(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _status(node: RunningNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_done_by_node(node, "status", "--json"))
    return found


def _done_by_node(node: RunningNode, *arguments: str) -> str:
    ran = node.cli(*arguments, program="node_main")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _peer(tmp_path: Path, name: str) -> str:
    """Make a home; return the peer id that its node will have."""
    return Home.open(tmp_path / name).key().peer


def _relay_for(tmp_path: Path, name: str, *peers: str) -> None:
    Home.open(tmp_path / name)
    (tmp_path / name / "node.toml").write_text(f"relay_for = {json.dumps(list(peers))}\n")


def _holds(node: RunningNode) -> bool:
    return any(relay["held"] for relay in _status(node)["relays"])


def _invite(node: RunningNode) -> str:
    _done(node, "service", "create", SERVICE)
    _done(node, "app", "install", SERVICE, "hello_world")
    return _done(node, "service", "invite", SERVICE).split()[0]


def _computed(node: RunningNode, name: str) -> str:
    """Submit a job on a node; return whose node computed it."""
    job = json.loads(_done(node, "submit", GREET, "-p", f"name={name}", "--wait", "--json"))
    assert job["status"] == "completed", job
    return str(job["computeNodeId"])


def test_an_inviter_and_a_joiner_who_listen_nowhere(start_node: StartNode, tmp_path: Path) -> None:
    inviter = _peer(tmp_path, "first")
    _relay_for(tmp_path, "relay", inviter)
    relay = start_node("relay", "--be-relay", "--no-compute")
    at = relay.info["addresses"][0]
    first = start_node("first", "--listen", "none", "--relay", at, "--no-compute")
    assert first.info["addresses"] == [f"{at}{CIRCUIT}{inviter}"]
    until("the relay holds a place", lambda: _holds(first))
    link = _invite(first)
    (named,) = Link.decode(link).peers
    assert named.addresses == (f"{at}{CIRCUIT}{inviter}",)

    guest = start_node("guest", "--listen", "none")
    joined = guest.cli("join", link, "--name", "Ada")
    assert joined.returncode == 0, joined.stderr
    assert _computed(guest, "Ada") == guest.info["peerId"]
    assert _computed(first, "Bob") == guest.info["peerId"]
    assert relay.get("services")["services"] == []
    assert _status(relay)["relay"]["circuits"] >= 1
    assert "holds a place" in _done_by_node(first, "status")
    assert "relaying   for 1 of at most 32" in _done_by_node(relay, "status")

    assert relay.stop() == 0
    until("they are apart", lambda: _status(guest)["peers"] == [])
    listen = at.partition("/p2p/")[0]
    start_node("relay", "--be-relay", "--no-compute", "--listen", listen)
    until("they are together", lambda: _status(guest)["peers"] == [inviter])
    assert _computed(first, "Eve") == guest.info["peerId"]


def test_a_relay_that_is_a_member_needs_nobody_named(start_node: StartNode) -> None:
    relay = start_node("relay", "--be-relay", "--no-compute")
    first = start_node(
        "first", "--listen", "none", "--relay", relay.info["addresses"][0], "--no-compute"
    )
    until(
        "the relay says no",
        lambda: "members of its services" in _status(first)["relays"][0]["why"],
    )
    link = _invite(first)
    # The link leads through the very relay that joins: it takes the connection that is there.
    joined = relay.cli("join", link, "--name", "Relay")
    assert joined.returncode == 0, joined.stderr
    until("the relay holds a place for a member", lambda: _holds(first), 120)
    guest = start_node("guest", "--listen", "none")
    _done(guest, "join", _done(first, "service", "invite", SERVICE).split()[0], "--name", "Ada")
    assert _computed(first, "Bob") == guest.info["peerId"]
    refused = _status(relay)["counters"]["refused: a relay reservation of a stranger"]
    assert refused >= 1


@pytest.fixture
def nats() -> Iterator[Nats]:
    if why := why_no_nats():
        assert "CI" not in os.environ, why
        pytest.skip(why)
    made = Nats()
    yield made
    made.remove()


def _cannot_reach(inside: tuple[str, ...], address: str) -> bool:
    _, _, host, _, port, *_ = address.split("/")
    code = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
    return (
        subprocess.run([*inside, sys.executable, "-c", code], capture_output=True).returncode != 0
    )


def test_an_inviter_and_a_joiner_behind_routers(
    start_node: StartNode, nats: Nats, tmp_path: Path
) -> None:
    _relay_for(tmp_path, "relay", _peer(tmp_path, "first"))
    listen = f"/ip4/{nats.open_host}/tcp/4101"
    relay = start_node(
        "relay", "--be-relay", "--no-compute", "--listen", listen, inside=nats.street
    )
    at = f"{listen}/p2p/{relay.info['peerId']}"
    assert not _cannot_reach(nats.homes[1], at), "nothing can be reached from there"
    anywhere = ("--listen", "/ip4/0.0.0.0/tcp/4101")
    first = start_node("first", "--relay", at, "--no-compute", *anywhere, inside=nats.homes[0])
    direct = [a for a in first.info["addresses"] if CIRCUIT not in a and "/127." not in a]
    assert direct == [f"/ip4/10.214.1.2/tcp/4101/p2p/{first.info['peerId']}"]
    for address in (*direct, "/ip4/203.0.113.2/tcp/4101"):
        assert _cannot_reach(nats.homes[1], address), "the routers let others in"
    until("the relay holds a place", lambda: _holds(first))
    link = _invite(first)

    guest = start_node("guest", *anywhere, inside=nats.homes[1])
    began = time.monotonic()
    joined = guest.cli("join", link, "--name", "Ada")
    assert joined.returncode == 0, joined.stderr
    print(f"\njoined behind a relay and two routers in {time.monotonic() - began:.1f} s")
    assert "Joined 'lab' as 'Ada' with roles compute,submit" in joined.stderr
    assert _computed(guest, "Ada") == guest.info["peerId"]
    assert _computed(first, "Bob") == guest.info["peerId"]
    assert first.info["peerId"] in _status(guest)["peers"]
    assert _status(relay)["relay"]["circuits"] >= 1
