"""What is wanted, who may run it, and who has compared: what the simulation found, one by one."""

from typing import Any

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.messages import MESSAGES, Digest, Hello, HelloService, WantChanges
from pairio_protocol.service import Chain, Cut
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import APP, RESOURCES, World, definition

FIRST, SECOND, WORKER = (SigningKey(bytes([i]) * 32) for i in (1, 2, 3))
ADMINS = [FIRST.peer, SECOND.peer]


def _founded() -> Chain:
    """A service of two admins, either of whom may change it, and a worker."""
    chain = Chain()
    ops: list[dict[str, Any]] = [
        {"op": "create", "name": "lab", "admins": ADMINS, "threshold": 1, "nonce": "00"},
        {"op": "add", "member": "w", "key": WORKER.peer, "roles": ["compute"]},
    ]
    chain.add(chain.propose(ops, [FIRST], 1))
    return chain


def _again(chain: Chain) -> Chain:
    copy = Chain()
    for change in chain.changes(-1):
        copy.add(change)
    return copy


def _add_policy(chain: Chain, key: SigningKey, number: int, cuts: tuple[Cut, ...] = ()) -> None:
    op = {"op": "policy", "policy": {"note": number}}
    chain.add(chain.propose([op], [key], number, cuts))


def test_a_removal_on_a_longer_losing_branch_bars_from_now_on_and_not_before() -> None:
    winning = _founded()
    losing = _again(winning)
    _add_policy(winning, FIRST, 2)  # the earlier admin's change wins the fork
    _add_policy(losing, SECOND, 3)
    losing.add(losing.propose([{"op": "remove", "member": "w"}], [SECOND], 4))
    for change in losing.changes(-1):
        winning.add(change)
    assert winning.epoch == 1 and winning.now.policy == {"note": 2}
    assert winning.now.roles_of(WORKER.peer) == ()
    at_then = winning.at(1)
    assert at_then is not None and at_then.roles_of(WORKER.peer) == ("compute",)
    _add_policy(winning, FIRST, 5)
    assert winning.now.roles_of(WORKER.peer) == ()


def _sent(world: World, peer: str, event: ev.Event) -> list[object]:
    effects = world.cores[peer].handle(event, world.now_ms, world.now_ms)
    return [MESSAGES.decode(e.data) for e in effects if isinstance(e, ef.Send)]


def test_whoever_knows_a_longer_head_and_still_differs_asks_for_everything() -> None:
    """A signature is missing here that decides a fork: what comes after the head is known."""
    world = World(2).with_service()
    one, other = world.peers
    service = world.cores[one].membership.find("lab") or ""
    chain = world.cores[one].membership.chains[service]

    def hello(head: str) -> ev.FrameReceived:
        entry = HelloService(service, chain.epoch + 1, head, bytes(32))
        return ev.FrameReceived(other, MESSAGES.encode(Hello(bytes([1]) * 16, (entry,))))

    unknown = WantChanges(service, chain.epoch, chain.head)
    assert unknown in _sent(world, one, hello("bafyunknown"))
    assert WantChanges(service, 0, "") in _sent(world, one, hello(chain.head))


def test_only_the_submitter_keeps_an_answer_for_good() -> None:
    world = World(2).with_service()
    submitter, worker = world.peers
    event = ev.Submit(9, "lab", definition("write"), RESOURCES)
    request = world.call(submitter, event)["request"]
    world.pass_time(1000)
    service = world.cores[worker].membership.find("lab") or ""
    for peer in world.peers:
        core = world.cores[peer]
        state = core.fold(service).requests[request]
        answer = core.fold(service).answer_for(state, core.fold(service).resolve(state.job))
        assert answer is not None
        core.answered(state, answer, service)
        assert [a[1] for a in core.disk.answers] == ([request] if peer == submitter else [])


def test_heights_that_differ_and_do_not_move_count_as_compared_after_a_while() -> None:
    world = World(2).with_service()
    one, other = world.peers
    core = world.cores[one]
    service = core.membership.find("lab") or ""
    changes = core.membership.chains[service].digest

    def compared(summary: bytes) -> bool:
        before = core.synced_ms(service)
        digest = Digest(service, summary, changes)
        _sent(world, one, ev.FrameReceived(other, MESSAGES.encode(digest)))
        return bool(core.synced_ms(service) != before)

    theirs = bytes([7]) * 32
    assert not compared(theirs)
    world.now_ms += 9_000
    assert not compared(theirs)
    world.now_ms += 2_000
    assert compared(theirs)
    world.now_ms += 2_000
    assert not compared(bytes([8]) * 32), "the neighbour has news"


def test_requests_at_one_place_of_the_logs_of_two_services_are_two() -> None:
    world = World(2).with_service()
    submitter, worker = world.peers
    world.call(submitter, ev.CreateService(20, "other", "01"))
    world.call(submitter, ev.Grant(21, "other", worker, ("compute",)))
    world.call(submitter, ev.InstallApp(22, "other", APP))
    world.pass_time(2500)
    asked = [
        world.call(submitter, ev.Submit(30 + i, name, definition("write"), RESOURCES))["request"]
        for i, name in enumerate(("lab", "other"))
    ]
    world.pass_time(1000)
    assert len(set(asked)) == 2
    core = world.cores[submitter]
    for name, request in zip(("lab", "other"), asked, strict=True):
        state = core.fold(core.membership.find(name) or "").requests[request]
        assert state.answer is not None, name


def test_what_a_request_waits_for_is_asked_for_also_when_its_submitter_is_gone() -> None:
    """The job of an input looks open to all, and its own submitter sees to it no more."""
    world = World(3).with_service()
    gone, submitter, idle = world.peers
    world.cores[submitter].coordinator.award_open = lambda: None  # type: ignore[method-assign]
    job = world.call(submitter, ev.Submit(9, "lab", definition("write"), RESOURCES))["job"]
    source = {"input": f"job:{job}/output"}
    world.call(gone, ev.Submit(10, "lab", definition("count", source), RESOURCES))
    for _ in range(3):
        world.pass_time(3500)
    assert world.executed == []
    world.peers = [submitter, idle]
    for peer in world.peers:
        world.do(peer, ev.PeerDown(gone))
    for _ in range(40):
        world.pass_time(2000)
    assert [processor for _, processor in world.executed] == ["write", "count"]
