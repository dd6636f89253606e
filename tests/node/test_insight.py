"""What is told of jobs: what would become of one, why it was a hit or a miss, on what it rests;
batches; the nodes of members."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.errors import NotFoundError, UserError
from pairio_node.explain import differences
from pairio_node.runner import Runners, RunOutcome, RunSpec
from pairio_node.transport import MemoryNetwork
from tests.node.node_lab import SERVICE, InstantRunner, LabNode, app_directory, three, until
from tests.node.test_consoles import COMPLETED, TalkingRunner

JOIN = {
    "name": "join",
    "executable": "main.py",
    "inputs": [{"name": "parts", "list": True}],
    "outputs": [{"name": "output"}],
    "parameters": [{"name": "name", "type": "str"}],
}


def _definition(name: str, *upstream: str, **more: Any) -> dict[str, Any]:
    inputs = [
        {"name": f"parts[{number}]", "url": f"job:{job}/output"}
        for number, job in enumerate(upstream)
    ]
    return {
        "appName": "joiner" if upstream else "greeter",
        "processorName": "join" if upstream else "greet",
        "inputFiles": inputs,
        "outputFiles": [{"name": "output"}],
        "parameters": [{"name": "name", "value": name}],
        **more,
    }


@asynccontextmanager
async def lab(path: Path) -> AsyncIterator[tuple[LabNode, LabNode, LabNode]]:
    """The usual three nodes, with an app that has inputs as well."""
    async with three(MemoryNetwork(), path) as (admin, worker, guest):
        folder = app_directory(path / "joiner")
        (folder / "spec.json").write_text(json.dumps({"name": "joiner", "processors": [JOIN]}))
        await admin.services.install_app(SERVICE, str(folder), None)
        with trio.fail_after(20):
            yield admin, worker, guest


async def _submit(node: LabNode, definition: dict[str, Any], **more: Any) -> dict[str, Any]:
    return await node.jobs.submit({"jobDefinition": definition, **more})


# -- plans -----------------------------------------------------------------------------------


async def test_a_plan_says_what_a_submit_would_be_and_submits_nothing(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, worker, _):
        body = {"jobDefinition": _definition("Ada"), "requiredResources": {"numCpus": 1.5}}
        plan = await admin.insight.plans.plan(body)
        assert (plan["isHit"], plan["waitsFor"], plan["maySubmit"]) == (False, [], True)
        assert "a miss: no result" in plan["why"]
        assert plan["requiredResources"]["numCpus"] == 1.5
        fits = {node["peerId"]: (node["fits"], node["rule"]) for node in plan["nodes"]}
        assert fits[worker.peer_id] == (True, "")
        assert fits[admin.peer_id] == (False, "compute")
        assert admin.core.fold(admin.services.id_of(SERVICE)).requests == {}

        job = await admin.done(await _submit(admin, _definition("Ada")))
        assert job["jobId"] == plan["jobId"]
        again = await admin.insight.plans.plan(body)
        assert (again["isHit"], again["computeNodeId"]) == (True, worker.peer_id)
        skipped = await admin.insight.plans.plan({**body, "skipCache": True})
        assert (skipped["isHit"], "skip_cache" in skipped["why"]) == (False, True)


async def test_a_plan_shows_who_could_run_it_and_why_not(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, worker, _):
        body = {"jobDefinition": _definition("Ada"), "requiredResources": {"numCpus": 64}}
        nodes = (await admin.insight.plans.plan(body))["nodes"]
        [found] = [node for node in nodes if node["peerId"] == worker.peer_id]
        assert (found["rule"], found["need"], found["have"]) == ("CPUs", "64", "2")


async def test_a_plan_of_a_wrong_definition_is_refused_as_the_submit_would_be(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as (admin, _, _):
        wrong = _definition("Ada", processorName="nix")
        with pytest.raises(UserError) as planned:
            await admin.insight.plans.plan({"jobDefinition": wrong})
        with pytest.raises(UserError) as submitted:
            await _submit(admin, wrong)
        assert planned.value.message == submitted.value.message


# -- explain ---------------------------------------------------------------------------------


async def test_a_miss_names_the_nearest_earlier_job_and_every_difference(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, _, _):
        far = await admin.done(await _submit(admin, _definition("Ada")))
        near = await admin.done(await _submit(admin, _definition("Eve", cacheBust="1")))
        job = await admin.done(await _submit(admin, _definition("Bob", cacheBust="1")))
        told = await admin.insight.explain.job(job["jobId"], None, None)
        assert (told["isHit"], told["nearest"]["jobId"]) == (False, near["jobId"])
        assert "nobody known here had asked" in told["why"]
        assert told["nearest"]["differences"] == [
            {"field": "parameters.name", "this": "Bob", "that": "Eve"}
        ]
        asked = await admin.insight.explain.job(job["jobId"], None, far["jobId"])
        assert [d["field"] for d in asked["nearest"]["differences"]] == [
            *("parameters.name", "cacheBust"),
        ]
        first = await admin.insight.explain.job(far["jobId"], None, None)
        assert first["nearest"] is None


async def test_a_hit_says_who_had_computed_it(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, worker, guest):
        await admin.done(await _submit(admin, _definition("Ada")))
        hit = await guest.done(await _submit(guest, _definition("Ada")))
        told = await guest.insight.explain.job(hit["requestId"], None, None)
        assert (told["isHit"], told["nearest"]) == (True, None)
        assert "worker had computed it before" in told["why"]
        assert told["answer"]["computeNodeId"] == worker.peer_id
        anew = await admin.done(await _submit(admin, _definition("Ada"), skipCache=True))
        told = await admin.insight.explain.job(anew["requestId"], None, None)
        assert (told["isHit"], "skip_cache" in told["why"]) == (False, True)


def test_every_field_of_a_definition_is_compared() -> None:
    def document(**changed: Any) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "app": "a",
            "processor": "p",
            "code": "bafycode",
            "inputs": [{"name": "i", "base_name": "i.txt", "source": {"cid": "bafyx"}}],
            "outputs": [{"name": "o", "base_name": "o.txt"}],
            "parameters": [{"name": "x", "value": 1}],
        }
        return {**plain, **changed}

    changes: dict[str, Any] = {
        "app": ("app", "b"),
        "processor": ("processor", "q"),
        "code": ("code", "bafyother"),
        "inputs": (
            "inputs.i",
            [{"name": "i", "base_name": "i.txt", "source": {"url": "http://x/i"}}],
        ),
        "outputs": ("outputs.o.fileBaseName", [{"name": "o", "base_name": "other.txt"}]),
        "parameters": ("parameters.x", [{"name": "x", "value": 2}]),
        "cache_bust": ("cacheBust", "1"),
    }
    assert differences(document(), document()) == []
    for name, (field, value) in changes.items():
        assert [d["field"] for d in differences(document(), document(**{name: value}))] == [field]
    gone = differences(document(), document(parameters=[]))
    assert gone == [{"field": "parameters.x", "this": 1, "that": None}]


# -- graphs ----------------------------------------------------------------------------------


async def test_a_graph_has_what_a_job_rests_on_first(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, _, _):
        top = await _submit(admin, _definition("top"))
        left = await _submit(admin, _definition("left", top["jobId"]))
        right = await _submit(admin, _definition("right", left["jobId"], top["jobId"]))
        end = await admin.done(
            await _submit(admin, _definition("end", left["jobId"], right["jobId"]))
        )
        graph = admin.insight.graphs.of(end["jobId"], None)
        names = [job["jobDefinition"]["parameters"][0]["value"] for job in graph["jobs"]]
        assert names == ["top", "left", "right", "end"]
        assert {job["status"] for job in graph["jobs"]} == {"completed"}
        assert graph["isWhole"]
        assert len(graph["edges"]) == 5
        assert graph["edges"][0] == {
            "fromJobId": top["jobId"],
            "outputName": "output",
            "toJobId": left["jobId"],
            "inputName": "parts[0]",
        }


async def test_a_graph_with_a_job_of_which_nothing_is_known_says_so(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, _, guest):
        plan = await guest.insight.plans.plan(
            {"jobDefinition": _definition("known to the guest only")}
        )
        job = await _submit(admin, _definition("end", plan["jobId"]))
        graph = admin.insight.graphs.of(job["jobId"], None)
        assert [j["status"] for j in graph["jobs"]] == ["unknown", "pending"]
        assert (graph["isWhole"], graph["jobs"][0]["jobDefinition"]) == (False, None)


# -- batches, nodes --------------------------------------------------------------------------


async def test_batches_are_counted_and_cancelled_whole(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, worker, _):
        await admin.done(await _submit(admin, _definition("Ada"), batchId="old/one"))
        runner = TalkingRunner()
        worker.runners = Runners([runner])
        for name in ("Bob", "Eve", "Fay"):
            await _submit(admin, _definition(name), batchId="new")
        newest, oldest = await admin.insight.batches.all(None, 10)
        assert (newest["batchId"], newest["jobs"], newest["isOver"]) == ("new", 3, False)
        assert (oldest["batchId"], oldest["statuses"]) == ("old/one", {"completed": 1})
        assert len(await admin.insight.batches.all(SERVICE, 1)) == 1
        canceled = await admin.insight.batches.cancel("new", None)
        assert (canceled["canceled"], canceled["isOver"]) == (3, True)
        assert canceled["statuses"] == {"canceled": 3}
        assert (await admin.insight.batches.cancel("new", None))["canceled"] == 0
        for name in ("nix", ""):
            with pytest.raises(NotFoundError):
                await admin.insight.batches.one(name, None)
        await runner.words.send(COMPLETED)


class FailingRunner(InstantRunner):
    """Every job fails."""

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        return RunOutcome("failed", "it broke", {}, b"", {})


async def test_what_is_blocked_names_the_job_that_failed_and_how(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, worker, _):
        worker.runner.fails = True
        root = await _submit(admin, _definition("root"))
        first = await _submit(admin, _definition("first", root["jobId"]))
        last = await _submit(admin, _definition("last", first["jobId"]))
        failed = f"input job {root['jobId']} failed: it broke"
        assert (await admin.done(first))["error"] == failed
        blocked = await admin.done(last)
        via = f" (input job {first['jobId']} rests on it)"
        assert (blocked["status"], blocked["error"]) == ("blocked", failed + via)
        why = admin.jobs.why(last["requestId"], None)
        assert (why["blockedBy"], why["failedJob"]) == (first["jobId"], root["jobId"])
        plan = await admin.insight.plans.plan({"jobDefinition": _definition("n", first["jobId"])})
        assert failed in plan["why"]


async def test_a_batch_whose_rest_is_blocked_is_over(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, worker, _):
        worker.runners = Runners([FailingRunner()])
        failed = await admin.done(await _submit(admin, _definition("Guy"), batchId="b"))
        await _submit(admin, _definition("end", failed["jobId"]), batchId="b")
        batch = await admin.insight.batches.one("b", None)
        assert (batch["statuses"], batch["isOver"]) == ({"blocked": 1, "failed": 1}, True)
        assert (await admin.insight.batches.cancel("b", None))["canceled"] == 1


async def test_what_waits_for_a_failed_job_waits_for_each_new_try_of_it(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, worker, _):
        runner = TalkingRunner()
        worker.runners = Runners([runner])

        def status(job: dict[str, Any]) -> str:
            return str(admin.jobs.one(job["requestId"], None)["status"])

        root = await _submit(admin, _definition("root"))
        end = await _submit(admin, _definition("end", root["jobId"]))
        for number in range(6):
            assert status(end) == "pending", number
            await runner.words.send(RunOutcome("failed", "it broke", {}, b"", {}))
            assert (await admin.done(root))["status"] == "failed"
            await until(lambda: status(end) == "blocked", "there is no other try")
            root = await _submit(admin, _definition("root"), rerunFailing=True)
        await runner.words.send(COMPLETED)
        await admin.done(root)


async def test_nodes_are_those_of_members_with_what_they_have(tmp_path: Path) -> None:
    async with lab(tmp_path) as (admin, worker, guest):
        await until(
            lambda: all(n["isAlive"] for n in admin.insight.nodes.all(None)),
            "presence of all is known",
        )
        nodes = {node["peerId"]: node for node in admin.insight.nodes.all(SERVICE)}
        assert set(nodes) == {admin.peer_id, worker.peer_id, guest.peer_id}
        mine, theirs = nodes[admin.peer_id], nodes[worker.peer_id]
        assert (mine["isThis"], mine["computes"]) == (True, False)
        assert (theirs["name"], theirs["numCpus"], theirs["running"]) == ("worker", 2, 0)
        assert theirs["free"] == theirs["slots"] > 0
