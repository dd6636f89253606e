"""Code comes before jobs do: to computing nodes, as soon as somebody who has it is connected."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from pairio_node.blocks import Exchange, FetchFailed
from pairio_node.code import RETRY_S, CodeKeeper
from pairio_protocol.core import NodeCore
from pairio_protocol.owner import OwnerRules


class _Service:
    """A service with one app, and a node in it; `holders` have the code."""

    def __init__(self, roles: tuple[str, ...] = ("compute",), compute: bool = True) -> None:
        self.apps: dict[str, dict[str, Any]] = {"greeter": {"bundle": "code-1", "processors": []}}
        folded = SimpleNamespace(roles_of=lambda _: roles, apps=self.apps)
        membership = SimpleNamespace(taken_up={"s"}, folded=lambda _: folded)
        ctx = SimpleNamespace(me="me", config=SimpleNamespace(compute=compute))
        self.rules: list[OwnerRules] = []
        owner = SimpleNamespace(rules=lambda _: self.rules)
        core = cast(NodeCore, SimpleNamespace(membership=membership, ctx=ctx, owner=owner))
        self.holders: set[str] = set()
        self.connected: frozenset[str] = frozenset()
        self.asked: list[tuple[str, float]] = []
        self.keeper = CodeKeeper(core, cast(Exchange, self), lambda: self.connected)

    async def fetch(self, service: str, cid: str, holders: Any) -> int:
        assert service == "s"
        self.asked.append((cid, trio.current_time()))
        if not self.holders & set(holders):
            raise FetchFailed("nobody has it")
        return 1


async def test_code_is_fetched_when_a_holder_connects_and_once(autojump_clock: MockClock) -> None:
    service = _Service()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.keeper.run)
        await trio.sleep_until(trio.current_time() + 3)
        assert service.keeper.missing == [("s", "code-1")]
        service.connected, service.holders = frozenset({"a"}), {"a"}
        await trio.sleep_until(trio.current_time() + 1.5)
        assert service.keeper.missing == []
        asked = len(service.asked)
        service.apps["greeter"]["bundle"] = "code-2"  # the app is updated
        await trio.sleep_until(trio.current_time() + 1.5)
        assert service.keeper.missing == []
        assert len(service.asked) == asked + 1
        nursery.cancel_scope.cancel()


async def test_those_who_do_not_have_it_are_not_asked_all_the_time(
    autojump_clock: MockClock,
) -> None:
    service = _Service()
    service.connected = frozenset({"a"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.keeper.run)
        await trio.sleep_until(trio.current_time() + 5 * RETRY_S - 1)
        assert len(service.asked) == 5
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("roles", "compute"), [(("submit",), True), (("compute",), False)])
def test_who_does_not_compute_keeps_no_code(roles: tuple[str, ...], compute: bool) -> None:
    assert _Service(roles, compute).keeper.missing == []


def test_code_that_the_owner_lets_nobody_run_is_not_wanted() -> None:
    service = _Service()
    service.rules = [OwnerRules(apps=("other/sum",))]
    assert service.keeper.missing == []
    service.rules = [OwnerRules(apps=("greeter/greet",))]
    assert service.keeper.missing == [("s", "code-1")]


def test_images_are_code_where_they_can_be_run() -> None:
    service = _Service()
    container = {"archive": "image-1", "id": "sha256:0"}
    service.apps["greeter"]["processors"] = [{"container": container}]
    assert service.keeper.missing == [("s", "code-1")]
    core, exchange = service.keeper._core, service.keeper._exchange
    keeper = CodeKeeper(core, exchange, lambda: frozenset(), containers=True)
    assert keeper.missing == [("s", "code-1"), ("s", "image-1")]
