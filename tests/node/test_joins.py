"""Whole nodes in one loop: one makes a link, the other joins with it, and leaves again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from pairio_node.api.app import make_app
from pairio_node.api.auth import Auth
from pairio_node.errors import UserError
from pairio_node.joins import _WORDS, qr_text, words_for
from pairio_node.transport import MemoryNetwork
from pairio_protocol.links import Link
from tests.node.node_lab import SERVICE, LabNode, app_directory, running, until
from tests.node.transport_lab import a_moment


@asynccontextmanager
async def two(path: Path) -> AsyncIterator[tuple[LabNode, LabNode]]:
    """Two nodes that have never heard of each other; one has a service with an app."""
    network = MemoryNetwork()
    async with (
        running(network, path / "admin", compute=False) as admin,
        running(network, path / "guest") as guest,
    ):
        await admin.services.create(SERVICE)
        await admin.services.install_app(SERVICE, str(app_directory(path / "app")), None)
        yield admin, guest


async def invite(node: LabNode, *roles: str, uses: int = 1) -> str:
    made = await node.joins.invite(SERVICE, list(roles or ("submit", "compute")), uses, 3600, False)
    link: str = made["link"]
    return link


async def test_join_compute_and_leave(tmp_path: Path) -> None:
    async with two(tmp_path) as (admin, guest):
        link = await invite(admin)
        joined = await guest.joins.join(link, "Ada", None, 10)
        assert joined["state"] == "joined"
        assert (joined["member"], joined["roles"]) == ("Ada", ["compute", "submit"])
        assert joined["words"] == Link.decode(link).phrase()
        assert (await guest.joins.join(link, None, None, 10))["already"]
        job = await admin.done(await admin.greet("Bob"))
        assert (job["status"], job["computeNodeId"]) == ("completed", guest.peer_id)

        left = await guest.joins.leave(SERVICE)
        await until(lambda: len(admin.services.one(SERVICE)["members"]) == 1, "off the list")
        assert left["serviceName"] == SERVICE
        assert (guest.services.all(), guest.services.offers()) == ([], [])


async def test_it_goes_on_in_the_background_and_after_a_restart(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with running(network, tmp_path / "admin", compute=False) as admin:
        await admin.services.create(SERVICE)
        link = await invite(admin)
    async with running(network, tmp_path / "guest") as guest:
        waiting = await guest.joins.join(link, "Ada", None, 0.1)
        assert (waiting["state"], waiting["code"]) == ("waiting", "")
        assert "no member of the link has answered" in waiting["message"]
        assert guest.status()["joins"][0]["serviceName"] == SERVICE
    async with (
        running(network, tmp_path / "guest") as guest,
        running(network, tmp_path / "admin", guest, compute=False),
    ):
        await until(guest.services.all, "joined")
        assert guest.services.all()[0]["roles"] == ["compute", "submit"]
        assert guest.status()["joins"] == []


async def test_a_node_without_compute_says_what_the_role_is_worth(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with (
        running(network, tmp_path / "admin") as admin,
        running(network, tmp_path / "guest", compute=False) as guest,
    ):
        await admin.services.create(SERVICE)
        joined = await guest.joins.join(await invite(admin), None, None, 10)
        assert "runs no jobs" in joined["note"]


async def test_what_is_refused_is_said_in_its_own_words(tmp_path: Path) -> None:
    async with two(tmp_path) as (admin, guest):
        link = await invite(admin, "read")
        with pytest.raises(UserError, match="does not give the roles"):
            await guest.joins.join(link, None, ["submit"], 10)
        await admin.joins.uninvite(SERVICE, link)
        with pytest.raises(UserError, match="was withdrawn") as caught:
            await guest.joins.join(link, None, None, 10)
        assert caught.value.code == "withdrawn"
        assert [i["state"] for i in admin.joins.invitations(SERVICE)] == ["withdrawn"]
        with pytest.raises(UserError, match="cut short or mistyped"):
            await guest.joins.join(link[:-2], None, None, 10)
        with pytest.raises(UserError, match="no invitation 'x'"):
            await admin.joins.uninvite(SERVICE, "x")
        with pytest.raises(UserError, match="role is 'king'"):
            await admin.joins.invite(SERVICE, ["king"], 1, 10, False)
        with pytest.raises(UserError, match="role is 'king'"):
            await guest.joins.join(link, None, ["king"], 10)
        with pytest.raises(UserError, match="uses is 0"):
            await admin.joins.invite(SERVICE, ["submit"], 0, 10, False)
        assert len({words for words, _ in _WORDS.values()}) == len(_WORDS)
        assert words_for("of tomorrow") != words_for("")


async def test_without_a_token_the_admin_approves_or_denies(tmp_path: Path) -> None:
    async with two(tmp_path) as (admin, guest):
        made = await admin.joins.invite(SERVICE, ["submit"], 1, 3600, True)
        assert made["needsApproval"]
        waiting = await guest.joins.join(made["link"], "Ada", None, 1)
        assert waiting["code"] == "waits_approval"
        (request,) = admin.joins.requests(SERVICE)
        assert (request["name"], request["peerId"]) == ("Ada", guest.peer_id)
        await admin.joins.approve(SERVICE, request["id"], ["read"])
        await until(guest.services.all, "joined")
        assert guest.services.all()[0]["roles"] == ["read"]
        assert admin.joins.requests(SERVICE) == []


async def test_who_asked_is_still_listed_after_a_restart_of_the_admin(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with running(network, tmp_path / "admin") as admin:
        await admin.services.create(SERVICE)
        link = (await admin.joins.invite(SERVICE, ["submit"], 1, 3600, True))["link"]
        async with running(network, tmp_path / "guest") as guest:
            assert (await guest.joins.join(link, "Ada", None, 1))["code"] == "waits_approval"
            assert len(admin.joins.requests(SERVICE)) == 1
            await _on_disk(admin)
    async with running(network, tmp_path / "admin") as admin:
        await until(admin.services.all, "the disk was read")
        (request,) = admin.joins.requests(SERVICE)
        assert request["name"] == "Ada"
        await admin.joins.deny(SERVICE, request["id"])
    async with running(network, tmp_path / "admin") as admin:
        await until(admin.services.all, "the disk was read")
        assert admin.joins.requests(SERVICE) == []


async def _on_disk(node: LabNode) -> None:
    """Wait until what a node has taken in is on its disk."""
    await until(lambda: not node.core.has_pending(), "sealed")
    await a_moment(0.1)


async def test_leaving_while_no_admin_is_there_outlives_a_restart(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with running(network, tmp_path / "guest") as guest:
        async with running(network, tmp_path / "admin") as admin:
            await admin.services.create(SERVICE)
            await guest.joins.join(await invite(admin), "Ada", None, 10)
        await until(lambda: not guest.transport.connected(), "the admin is gone")
        assert not (await guest.joins.leave(SERVICE))["offTheList"]
        await _on_disk(guest)
    async with (
        running(network, tmp_path / "guest") as guest,
        running(network, tmp_path / "admin", guest) as admin,
    ):
        await until(
            lambda: admin.services.all() and len(admin.services.one(SERVICE)["members"]) == 1,
            "off the list",
        )
        await until(lambda: not guest.status()["joins"], "told so")
        assert guest.services.all() == guest.services.offers() == []


async def test_a_device_joins_as_its_member_through_the_members_own_link(tmp_path: Path) -> None:
    async with two(tmp_path) as (admin, guest):
        await guest.joins.join(await invite(admin), "Ada", None, 10)
        network = guest.transport._network  # type: ignore[attr-defined]
        link = guest.joins.link_device(SERVICE, 60)["link"]
        assert [p.peer for p in Link.decode(link).peers] == [guest.peer_id, admin.peer_id]
        async with running(network, tmp_path / "phone", compute=False) as phone:
            joined = await phone.joins.join(link, None, None, 10)
            assert (joined["member"], joined["roles"]) == ("Ada", ["compute", "submit"])
            with pytest.raises(UserError, match="no service"):
                phone.joins.link_device("other", 60)


async def test_a_declined_offer_stays_away_also_after_a_restart(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with running(network, tmp_path / "admin") as admin:
        await admin.services.create(SERVICE)
        async with running(network, tmp_path / "guest") as guest:
            guest.transport.keep_connected(admin.peer_id, admin.transport.addresses())
            await admin.admins.grant(SERVICE, guest.peer_id, ["submit"], "guest")
            await until(guest.services.offers, "offered")
            await guest.joins.decline(SERVICE)
            with pytest.raises(UserError, match="no offer"):
                await guest.joins.decline(SERVICE)
        async with running(network, tmp_path / "guest") as guest:
            await until(lambda: guest.transport.connected(), "connected again")
            await admin.admins.grant(SERVICE, guest.peer_id, ["read"], "guest")
            await a_moment(0.3)
            assert guest.services.offers() == []


async def test_with_a_threshold_an_invitation_waits_for_the_others_and_a_join_for_nobody(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as (admin, second):
        network = admin.transport._network  # type: ignore[attr-defined]
        await second.joins.join(await invite(admin, "admin", "submit"), "Bob", None, 10)
        asked = await admin.admins.set_admins(SERVICE, [admin.peer_id, second.peer_id], 2)
        await until(lambda: second.admins.proposals(SERVICE), "the proposal is there")
        await second.admins.sign(SERVICE, asked["proposal"]["id"], None)
        await until(lambda: not admin.admins.proposals(SERVICE), "two are to sign")
        made = await admin.joins.invite(SERVICE, ["submit"], 1, 3600, False)
        assert made["proposal"]["needed"] == 2
        async with running(network, tmp_path / "guest2", compute=False) as guest:
            waiting = await guest.joins.join(made["link"], "Ada", None, 0.5)
            assert waiting["code"] == "unknown_invitation"
            await until(lambda: second.admins.proposals(SERVICE), "the proposal is there")
            await second.admins.sign(SERVICE, made["proposal"]["id"], None)
            await until(guest.services.all, "joined by one admin's signature")
            assert guest.services.all()[0]["roles"] == ["submit"]


def test_a_qr_code_fits_into_a_terminal(tmp_path: Path) -> None:
    lines = qr_text("pairio:" + "x" * 400).splitlines()
    assert 20 < len(lines) < 45


async def test_the_routes_answer_what_the_facade_does(tmp_path: Path) -> None:
    async with two(tmp_path) as (admin, guest):

        def client(node: LabNode, name: str) -> httpx.AsyncClient:
            app = make_app(node, Auth("t", tmp_path / name, 1))
            headers = {"Authorization": "Bearer t", "Host": "127.0.0.1:1"}
            transport = httpx.ASGITransport(app)
            return httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1:1", headers=headers
            )

        async with client(admin, "a") as ours, client(guest, "g") as theirs:
            path = f"/api/v1/services/{SERVICE}"
            made = await ours.post(f"{path}/invitations", json={"roles": ["submit"]})
            assert made.status_code == 200, made.text
            listed = (await ours.get(f"{path}/invitations")).json()["invitations"]
            assert [i["state"] for i in listed] == ["open"]
            body = {"link": made.json()["link"], "name": "Ada", "waitSec": 10}
            joined = await theirs.post("/api/v1/joins", json=body)
            assert joined.json()["member"] == "Ada"
            service = joined.json()["serviceId"]
            assert (await theirs.get(f"/api/v1/joins/{service}")).json()["state"] == "joined"
            assert (await theirs.get("/api/v1/joins")).json() == {"joins": []}
            device = await theirs.post(f"{path}/devices", json={})
            assert device.json()["words"].count("-") == 3
            assert (await ours.get(f"{path}/requests")).json() == {"requests": []}
            for route in ("requests/x/approve", "requests/x/deny"):
                assert (await ours.post(f"{path}/{route}", json={})).status_code == 400
            assert (await theirs.post(f"{path}/decline")).status_code == 400
            body = {"invitation": made.json()["link"]}
            gone = await ours.post(f"{path}/uninvite", json=body)
            assert gone.status_code == 200, gone.text
            assert (await theirs.post(f"{path}/leave")).json()["serviceId"] == service
