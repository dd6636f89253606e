"""`pairio publish`, `unpublish`, `published`, and `pairio service policy`."""

import json
from typing import Any

from tests.cli.conftest import Run
from tests.cli.test_public import WAITING
from tests.sdk.fake_node import FakeNode

ENTRY: dict[str, Any] = {
    "id": "bafyreijob",
    "kind": "result",
    "result": "bafyreiresult",
    "cids": ["bafyreijob", "bafyreiresult", "bafkreioutput"],
    "blocks": 4,
    "sinceUnixMs": 1,
}


def test_publish_prints_the_result_and_warns_that_it_cannot_be_unsaid(
    node: FakeNode, run: Run
) -> None:
    node.on("POST", "/published", {**ENTRY, "changed": True})
    ran = run("publish", "bafyreijob")
    assert (ran.code, ran.out) == (0, "bafyreiresult\n")
    assert "cannot be unsaid" in ran.err and "pairio unpublish bafyreijob" in ran.err
    node.on("POST", "/published", {**ENTRY, "changed": False})
    assert "public already" in run("publish", "bafyreijob").err


def test_content_is_published_by_its_cid(node: FakeNode, run: Run) -> None:
    entry = {"id": "bafkreifile", "kind": "content", "cids": ["bafkreifile"], "blocks": 1}
    node.on("POST", "/published", {**entry, "sinceUnixMs": 1, "changed": True})
    ran = run("publish", "bafkreifile")
    assert (ran.code, ran.out) == (0, "bafkreifile\n")
    assert "all of it" in ran.err


def test_unpublish_says_what_it_does_not_do(node: FakeNode, run: Run) -> None:
    node.on("DELETE", "/published/bafyreijob", {**ENTRY, "changed": True})
    ran = run("unpublish", "bafyreijob")
    assert (ran.code, ran.out) == (0, "")
    assert "what they have stays theirs" in ran.err


def test_published_lists_what_the_owner_and_services_show(node: FakeNode, run: Run) -> None:
    node.on("GET", "/published", {"published": [], "services": []})
    assert "Nothing here" in run("published").err
    found = {"published": [ENTRY], "services": [{"serviceName": "lab", "serviceId": "s"}]}
    node.on("GET", "/published", found)
    shown = run("published").out
    assert "bafyreijob" in shown and "lab" in shown and "results of the service" in shown
    assert json.loads(run("published", "--json").out) == found


def test_a_policy_is_shown_set_or_proposed(node: FakeNode, run: Run) -> None:
    view = {"serviceName": "lab", "serviceId": "s", "results": "members"}
    node.on("GET", "/services/lab/policy", view)
    assert run("service", "policy", "lab").out == "results: members\n"
    made = {**view, "results": "public", "changed": True, "proposal": None}
    node.on("POST", "/services/lab/policy", made)
    ran = run("service", "policy", "lab", "--results", "public")
    assert (ran.code, ran.out) == (0, "")
    assert "by anybody" in ran.err and "cannot be unsaid" in ran.err
    node.on("POST", "/services/lab/policy", {**made, "changed": False, "proposal": WAITING})
    ran = run("service", "policy", "lab", "--results", "public")
    assert (ran.code, ran.out) == (0, "bafyproposal\n")
    assert "it waits for 1 more" in ran.err and "unsaid" not in ran.err
    assert run("service", "policy", "lab", "--results", "everybody").code == 2
