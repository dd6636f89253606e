"""Who lost a role is told who took it, when, and how; what waits fails at once."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.revoked import _date, why_without
from pairio_protocol.service import Chain
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import RESOURCES, World, definition

ALICE, BOB = SigningKey(b"A" * 32), SigningKey(b"B" * 32)
NOON_MS = 1_767_268_800_000  # 2026-01-01 12:00:00 UTC


@given(st.integers(0, 253_402_300_799))
def test_a_date_is_that_of_the_calendar(unix_s: int) -> None:
    assert _date(unix_s) == datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _chain() -> Chain:
    chain = Chain()
    create = {"op": "create", "name": "lab", "admins": [ALICE.peer], "threshold": 1, "nonce": "0"}
    alice = {"op": "add", "member": "alice", "key": ALICE.peer, "roles": ["admin"]}
    bob = {"op": "add", "member": "bob", "key": BOB.peer, "roles": ["submit", "compute"]}
    chain.add(chain.propose([create, alice, bob], [ALICE], NOON_MS))
    return chain


@pytest.mark.parametrize(
    ("op", "says"),
    [
        ({"op": "remove", "member": "bob"}, "removes 'bob'"),
        ({"op": "role", "member": "bob", "roles": ["read"]}, "sets the roles of 'bob': read"),
        ({"op": "end"}, "ends the service"),
    ],
)
def test_it_says_who_and_when_and_how(op: dict[str, object], says: str) -> None:
    chain = _chain()
    assert why_without(chain, BOB.peer, "submit") == ""
    chain.add(chain.propose([op], [ALICE], NOON_MS))
    signer = f"signed by alice ({ALICE.peer})"
    why = why_without(chain, BOB.peer, "submit")
    assert why == f"change 1 of 2026-01-01 12:00:00 UTC, {signer}: {says}"
    assert why_without(chain, BOB.peer, "admin") == ("" if op["op"] != "end" else why)


def test_a_submit_that_waits_to_be_stored_fails_at_once() -> None:
    world = World(3).with_service()
    admin, _, member = world.peers
    world.do(admin, ev.Revoke(78, "lab", member))
    while 78 not in world.answers:  # it asks for frontiers first
        world.now_ms += 100
        world.do(admin, ev.TimePassed())
    submit = ev.Submit(77, "lab", definition("write"), RESOURCES, "skip_cache")
    world.cores[member].handle(submit, world.now_ms)  # not sealed yet
    world.settle()
    answer = world.answers[77]
    assert isinstance(answer, ef.Fail)
    assert (answer.code, "lost its role" in answer.message) == ("revoked", True)
    assert "removes" in answer.message
    world.do(member, ev.Submit(79, "lab", definition("write"), RESOURCES))
    refused = world.answers[79]
    assert isinstance(refused, ef.Fail)
    assert "may not submit to 'lab' any more: change" in refused.message
