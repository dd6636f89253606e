"""The policy `results`: whether anybody may read what the jobs of a service made."""

import pytest

from pairio_protocol import events as ev
from pairio_protocol.allowlist import Folded, apply_ops
from pairio_protocol.errors import DecodeError
from tests.protocol.test_public import LIMITS, Public


def folded(world: Public) -> Folded:
    """The list as its admin has it."""
    return world.cores[world.admin].membership.folded(world.service)


def test_results_are_members_only_until_an_admin_says_otherwise_and_again_after() -> None:
    world = Public()
    assert not folded(world).has_public_results
    world.ask(world.admin, ev.SetResults, "lab", True)
    world.settle()
    for peer in (world.admin, world.worker):
        assert world.cores[peer].membership.folded(world.service).has_public_results
    world.ask(world.admin, ev.SetResults, "lab", False)
    world.settle()
    assert not world.cores[world.worker].membership.folded(world.service).has_public_results


def test_a_service_whose_results_are_members_only_has_the_document_it_always_had() -> None:
    world = Public()
    before = folded(world).document()
    world.ask(world.admin, ev.SetResults, "lab", True)
    assert folded(world).document()["policy"] == {"results": "public"}
    world.ask(world.admin, ev.SetResults, "lab", False)
    assert folded(world).document() == before


def test_it_is_apart_from_what_strangers_may_submit() -> None:
    world = Public().make_public()
    world.ask(world.admin, ev.SetResults, "lab", True)
    assert set(folded(world).policy) == {"open_submit", "results"}
    world.ask(world.admin, ev.SetPublic, "lab", None)
    assert folded(world).has_public_results
    world.ask(world.admin, ev.SetPublic, "lab", LIMITS.document())
    world.ask(world.admin, ev.SetResults, "lab", False)
    assert set(folded(world).policy) == {"open_submit"}


def test_to_say_it_twice_changes_nothing() -> None:
    world = Public()
    world.ask(world.admin, ev.SetResults, "lab", True)
    head = world.cores[world.admin].membership.chains[world.service].head
    answer = world.ask(world.admin, ev.SetResults, "lab", True)
    assert answer["changed"] is False
    assert world.cores[world.admin].membership.chains[world.service].head == head


def test_only_an_admin_says_it() -> None:
    world = Public()
    for is_public in (True, False):
        fail = world.fails(world.worker, ev.SetResults, "lab", is_public)
        assert "no admin" in fail.message


def test_a_service_that_is_over_shows_nothing() -> None:
    world = Public()
    world.ask(world.admin, ev.SetResults, "lab", True)
    world.ask(world.admin, ev.EndService, "lab")
    assert not folded(world).has_public_results


@pytest.mark.parametrize("value", ["members", "Public", "", True, None, 1, ["public"]])
def test_another_word_is_no_policy(value: object) -> None:
    op = {"op": "policy", "policy": {"results": value}}
    with pytest.raises(DecodeError, match="results is not 'public'"):
        apply_ops(folded(Public()), [op])
