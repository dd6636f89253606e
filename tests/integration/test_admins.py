"""Three admins on nodes of their own: two sign, over the network and by file; one key is lost."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, StartNode
from tests.integration.waiting import until

pytestmark = pytest.mark.integration


def _cli(node: RunningNode, *arguments: str) -> str:
    done = node.cli(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _lab(node: RunningNode) -> dict[str, Any]:
    services = node.get("services")["services"]
    return services[0] if services else {}


def _members(node: RunningNode) -> set[str]:
    return {member["name"] for member in _lab(node).get("members", [])}


@pytest.mark.timeout(180)
def test_two_of_three_admins_sign_and_a_lost_key_does_not_end_the_service(
    start_node: StartNode, tmp_path: Path
) -> None:
    ada = start_node("ada")
    bob = start_node("bob", "--bootstrap", ada.info["addresses"][0])
    eve = start_node(
        "eve",
        *("--bootstrap", ada.info["addresses"][0], "--bootstrap", bob.info["addresses"][0]),
    )
    _cli(ada, "service", "create", "lab")
    for node, name in ((bob, "Bob"), (eve, "Eve")):
        peer = node.info["peerId"]
        _cli(ada, "service", "grant", "lab", peer, "--roles", "submit", "--name", name)
        until(f"{name} takes part", partial(_lab, node))
    peers = ",".join(node.info["peerId"] for node in (ada, bob, eve))
    proposal = _cli(ada, "service", "admins", "lab", "--set", peers, "--threshold", "2").strip()

    # The second signature, over the network.
    until("Bob is asked", lambda: _lab(bob)["proposals"])
    assert "2 of them sign" in _cli(bob, "service", "proposals", "lab")
    _cli(bob, "service", "sign", "lab", proposal[-10:])
    until("all know that two sign", lambda: {_lab(n)["threshold"] for n in (ada, bob, eve)} == {2})

    # An act waits, and survives a restart of the node that proposed it.
    _cli(ada, "service", "rename", "lab", f"node-{ada.info['peerId'][-6:]}", "Ada")
    assert ada.stop() == 0
    ada = start_node("ada")
    [waiting] = json.loads(_cli(ada, "service", "proposals", "lab", "--json"))
    assert waiting["does"] == [f"renames 'node-{ada.info['peerId'][-6:]}' to 'Ada'"]
    file = tmp_path / "change.json"
    _cli(ada, "service", "propose", "lab", "--file", str(file))
    _cli(eve, "service", "sign", "lab", "--file", str(file))
    until("the name is known everywhere", lambda: all("Ada" in _members(n) for n in (bob, eve)))
    _cli(ada, "service", "sign", "lab", "--file", str(file))
    assert "Ada" in _members(ada)

    # Ada's key is lost: the others replace it and go on.
    assert ada.stop() == 0
    others = f"{bob.info['peerId']},{eve.info['peerId']}"
    _cli(bob, "service", "admins", "lab", "--set", others, "--threshold", "2")
    until("Eve is asked", lambda: _lab(eve)["proposals"])
    _cli(eve, "service", "sign", "lab")
    until("Bob knows", lambda: len(_lab(bob)["admins"]) == 2)
    removed = _cli(eve, "service", "revoke", "lab", "Ada").strip()
    until("Bob is asked", lambda: _lab(bob)["proposals"])
    _cli(bob, "service", "sign", "lab", removed)
    until("Ada is off the list", lambda: "Ada" not in _members(eve))

    # Whoever has the old key is told, and may do nothing.
    ada = start_node("ada", "--bootstrap", bob.info["addresses"][0])
    until("Ada is told", lambda: _lab(ada).get("roles") == [])
    refused = ada.cli("service", "rename", "lab", "Bob", "Mallory")
    assert (refused.returncode, "no admin" in refused.stderr) == (1, True)

    # All of it stands in the log, which is verified with no node.
    log = tmp_path / "log.json"
    _cli(eve, "service", "log", "lab", "--export", str(log))
    told = json.loads(_cli(eve, "service", "verify-log", str(log), "--json"))
    last = told["entries"][-1]
    assert last["does"] == ["removes 'Ada'"]
    assert {person["member"] for person in last["signedBy"]} == {"Bob", "Eve"}
