"""What admins do, through the facade of whole nodes."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pairio_node.errors import UserError
from pairio_node.search import JobQuery
from pairio_node.transport import MemoryNetwork
from pairio_protocol.history import read_history
from tests.node.node_lab import SERVICE, LabNode, app_directory, running, three, until


def _names(node: LabNode) -> set[str]:
    return {member["name"] for member in node.services.one(SERVICE)["members"]}


@asynccontextmanager
async def two_admins(path: Path) -> AsyncIterator[tuple[LabNode, ...]]:
    """Three nodes of whom the first two are admins, and both have to sign."""
    async with three(MemoryNetwork(), path) as (admin, worker, guest):
        made = await admin.admins.set_admins(SERVICE, [admin.peer_id, worker.peer_id], 2)
        assert made["changed"] is False
        await until(lambda: worker.admins.proposals(SERVICE), "the second is asked")
        assert (await worker.admins.sign(SERVICE, "", None))["changed"]
        await until(lambda: admin.services.one(SERVICE)["threshold"] == 2, "both sign")
        yield admin, worker, guest


async def test_roles_names_and_keys_by_the_facade(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        granted = await admin.admins.grant(SERVICE, "guest", ["processJobs"], None)
        assert (granted["member"], granted["changed"], granted["proposal"]) == ("guest", True, None)
        again = await admin.admins.grant(SERVICE, guest.peer_id, ["compute"], None)
        assert again["changed"] is False
        await admin.admins.rename_member(SERVICE, "guest", "Ada")
        await until(lambda: "Ada" in _names(worker), "the name is known")
        await admin.admins.revoke(SERVICE, "Ada", ["compute"], None)
        await until(lambda: guest.services.one(SERVICE)["roles"] == ["submit"], "it is told")
        with pytest.raises(UserError, match="role is 'king'"):
            await admin.admins.grant(SERVICE, "Ada", ["king"], None)
        with pytest.raises(UserError, match="no admin") as caught:
            await guest.admins.revoke(SERVICE, "worker", None, None)
        assert admin.peer_id[-6:] in (caught.value.hint or "")
        with pytest.raises(UserError, match="looks like"):
            await admin.admins.rename_member(SERVICE, "Ada", "WORKER")
        assert (await admin.admins.rename_here(SERVICE, "mine"))["serviceName"] == "mine"
        assert worker.services.one(SERVICE)["serviceName"] == SERVICE


async def test_a_proposal_is_shown_in_words_and_survives_a_restart(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with running(network, tmp_path / "a") as one:
        async with running(network, tmp_path / "b", one) as other:
            await one.services.create(SERVICE)
            await one.admins.grant(SERVICE, other.peer_id, ["submit"], "Bob")
            await until(other.services.all, "it is a member")
            await one.admins.set_admins(SERVICE, [one.peer_id, other.peer_id], 2)
            await until(lambda: other.admins.proposals(SERVICE), "it is asked")
            await other.admins.sign(SERVICE, "", None)
            await until(lambda: one.services.one(SERVICE)["threshold"] == 2, "both sign")
        made = await one.admins.rename_member(SERVICE, "Bob", "Ada")
        proposal = made["proposal"]
    async with running(network, tmp_path / "a") as one:
        await until(one.services.all, "the disk was read")
        [found] = one.admins.proposals(SERVICE)
        assert found == proposal
        assert found["does"] == ["renames 'Bob' to 'Ada'"]
        assert [p["peerId"] for p in found["signedBy"]] == [one.peer_id]
        assert found["missing"] == [{"peerId": other.peer_id, "member": "Bob"}]
        assert (found["have"], found["needed"], found["fits"]) == (1, 2, True)
        async with running(network, tmp_path / "b", one) as other:
            await until(other.services.all, "the disk was read")
            await until(lambda: other.admins.proposals(SERVICE), "it is asked when it connects")
            assert (await other.admins.sign(SERVICE, found["id"][-6:], None))["changed"]
            await until(lambda: "Ada" in _names(one), "it has taken effect")
            assert one.admins.proposals(SERVICE) == []


async def test_what_is_withdrawn_stays_so_after_a_restart(tmp_path: Path) -> None:
    async with two_admins(tmp_path) as (admin, worker, _):
        await admin.admins.rename_member(SERVICE, "guest", "Ada")
        await until(lambda: worker.admins.proposals(SERVICE), "it is asked")
        await worker.admins.withdraw(SERVICE, worker.admins.proposals(SERVICE)[0]["id"])
        assert worker.admins.proposals(SERVICE) == []
        with pytest.raises(UserError, match="no proposal"):
            await worker.admins.sign(SERVICE, "", None)
        kinds = [kind for kind, _, _ in worker.store.load().notes]
        assert kinds == ["proposal withdrawn"]


async def test_a_proposal_by_file_is_looked_at_before_it_is_signed(tmp_path: Path) -> None:
    async with two_admins(tmp_path) as (admin, worker, guest):
        made = await admin.admins.rename_member(SERVICE, "guest", "Ada")
        data = made["proposal"]["data"]
        looked = worker.admins.look(SERVICE, "", data)
        assert looked["does"] == ["renames 'guest' to 'Ada'"]
        assert "guest" in _names(worker), "looking signs nothing"
        signed = await worker.admins.sign(SERVICE, "", data)
        assert signed["changed"]
        back = await admin.admins.sign(SERVICE, "", signed["data"])
        assert "Ada" in {m["name"] for m in back["members"]}
        for bad, says in (("%", "no proposal"), ("AAAA", "no proposal for this service")):
            with pytest.raises(UserError, match=says):
                admin.admins.look(SERVICE, "", bad)
        with pytest.raises(UserError, match="no proposal"):
            await guest.admins.sign(SERVICE, "nix", None)


async def test_an_app_is_updated_removed_and_its_history_told(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, _, guest):
        source = tmp_path / "app"
        (source / "main.py").write_text("# another version\n")
        (source / "spec.json").touch()
        updated = await admin.services.install_app(SERVICE, str(source), None)
        assert (updated["updated"], updated["changed"]) == (True, True)
        same = await admin.services.install_app(SERVICE, str(source), None)
        assert (same["updated"], same["changed"]) == (True, False)
        await until(lambda: guest.services.apps(SERVICE)[0]["bundle"] == updated["bundle"], "told")
        done = await guest.done(await guest.greet("Ada"))
        await admin.admins.remove_app(SERVICE, "greeter")
        await until(lambda: guest.services.apps(SERVICE) == [], "it is gone everywhere")
        with pytest.raises(UserError, match="no app 'greeter'"):
            await guest.greet("Bob")
        assert guest.jobs.one(done["requestId"], None)["status"] == "completed"
        told = guest.admins.app_history(SERVICE, "greeter")
        assert [e["does"].split(" the app")[0] for e in told] == ["adds", "updates", "removes"]
        assert {p["member"] for e in told for p in e["signedBy"]} == {f"node-{admin.peer_id[-6:]}"}
        assert guest.admins.app_history(SERVICE, "other") == []
        first = guest.admins.log(SERVICE, with_changes=False)["entries"][0]
        assert [p["member"] for p in first["signedBy"]] == [f"node-{admin.peer_id[-6:]}"]


async def test_an_open_job_of_a_removed_app_is_blocked_and_says_why(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a", compute=False) as node:
        await node.services.create(SERVICE)
        await node.services.install_app(SERVICE, str(app_directory(tmp_path / "app")), None)
        job = await node.greet("Ada")
        assert job["status"] == "pending"
        with pytest.raises(UserError, match="is pending: output 'output' is not there yet"):
            await node.output(job)
        with pytest.raises(UserError, match="has no output 'nix'") as caught:
            await node.jobs.output_cid(job["requestId"], None, "nix")
        assert caught.value.hint == "outputs: output"
        await node.admins.remove_app(SERVICE, "greeter")
        blocked = await node.jobs.wait(job["requestId"], None, 10)
        assert (blocked["status"], blocked["error"]) == (
            "blocked",
            "app 'greeter' was removed from the service",
        )
        await node.services.install_app(SERVICE, str(tmp_path / "app"), None)
        assert node.jobs.one(job["requestId"], None)["status"] == "pending"


async def test_a_service_that_was_ended_serves_nobody(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, _, guest):
        await guest.done(await guest.greet("Ada"))
        ended = await admin.admins.end(SERVICE)
        assert (ended["ended"], ended["roles"]) == (True, [])
        await until(lambda: guest.services.one(SERVICE)["ended"], "it is told")
        with pytest.raises(UserError, match="may not submit"):
            await guest.greet("Eve")
        with pytest.raises(UserError, match="has ended"):
            await admin.admins.grant(SERVICE, "guest", ["read"], None)
        over = ended["serviceId"]
        made = await admin.services.create(SERVICE)  # the name is free again
        assert admin.services.id_of(None) == made["serviceId"] != over, "no other can be meant"
        with pytest.raises(UserError, match="would have fewer admins") as caught:
            await admin.joins.leave(SERVICE)
        assert f"pairio service delete {SERVICE}" in str(caught.value.hint)
        assert (await admin.joins.leave(over))["offTheList"], "it needs no admin any more"
        assert [one["serviceId"] for one in admin.services.all()] == [made["serviceId"]]


async def test_the_log_tells_who_did_what_and_verifies_alone(tmp_path: Path) -> None:
    async with two_admins(tmp_path) as (admin, worker, _):
        await admin.admins.revoke(SERVICE, "guest", None, None)
        await until(lambda: worker.admins.proposals(SERVICE), "it is asked")
        await worker.admins.sign(SERVICE, "", None)
        told: dict[str, Any] = worker.admins.log(SERVICE, with_changes=True)
        last = told["entries"][-1]
        assert last["does"] == ["removes 'guest'"]
        assert {p["member"] for p in last["signedBy"]} == {f"node-{admin.peer_id[-6:]}", "worker"}
        assert (last["needed"], last["fate"]) == (2, "counts")
        assert [e["epoch"] for e in told["entries"]] == list(range(told["epoch"] + 1))
        chain = read_history(map(base64.b64decode, told["changes"]))
        assert (chain.service, chain.head) == (told["serviceId"], told["head"])
        assert "changes" not in worker.admins.log(SERVICE, with_changes=False)


async def test_a_revoked_member_is_refused_everywhere_and_told(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        await guest.done(await guest.greet("Ada"))
        await admin.admins.revoke(SERVICE, guest.peer_id, None, None)
        for node in (worker, guest):
            await until(partial(lambda n: "guest" not in _names(n), node), "it is told")
        kept = admin.search.newest(JobQuery(service=SERVICE, statuses=("completed",)))
        assert len(kept) == 1, "what it asked for before is not cut"
