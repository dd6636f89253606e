"""What admins do to a service: roles, keys, names, admins, apps, the end; cuts; proposals."""

from typing import Any

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.allowlist import Folded
from pairio_protocol.core import NodeCore
from pairio_protocol.fold import RequestState
from pairio_protocol.ids import LogId
from pairio_protocol.limits import CUT_WAIT_MS, PROPOSALS_PER_ADMIN_MAX
from pairio_protocol.machines.proposals import NOTE
from pairio_protocol.messages import MESSAGES, Proposal, Push
from pairio_protocol.records import Cancel
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import APP, RESOURCES, World, definition


class Lab(World):
    """A service `lab` of connected nodes; the first is its admin."""

    def __init__(self, count: int = 3) -> None:
        super().__init__(count)
        self.number = 100
        self.with_service()
        self.service = next(iter(self.cores[self.peers[0]].membership.chains))

    def act(self, index: int, make: Any, *arguments: Any) -> dict[str, Any]:
        """Let a node do an act to its end."""
        answer = self.tried(index, make, *arguments)
        assert isinstance(answer, ef.Reply), answer
        return answer.value

    def fails(self, index: int, make: Any, *arguments: Any) -> str:
        """Let a node do an act that is refused; returns the words."""
        answer = self.tried(index, make, *arguments)
        assert isinstance(answer, ef.Fail), answer
        assert answer.hint
        return answer.message

    def tried(self, index: int, make: Any, *arguments: Any) -> ef.Reply | ef.Fail:
        self.number += 1
        self.do(self.peers[index], make(self.number, "lab", *arguments))
        self.settle()
        if self.number not in self.answers:
            self.pass_time(CUT_WAIT_MS)
        return self.answers[self.number]

    def core(self, index: int) -> NodeCore:
        return self.cores[self.peers[index]]

    def chain(self, index: int = 0) -> Chain:
        return self.core(index).membership.chains[self.service]

    def list_at(self, index: int = 0) -> Folded:
        return self.chain(index).now

    def name(self, index: int) -> str:
        return self.list_at().member_of(self.peers[index]) or ""

    def cut_off(self, *indexes: int) -> None:
        for one in indexes:
            for other in range(len(self.peers)):
                self.do(self.peers[one], ev.PeerDown(self.peers[other]))
                self.do(self.peers[other], ev.PeerDown(self.peers[one]))

    def restart(self, index: int) -> None:
        """Start a node again with what its disk held."""
        before = self.core(index)
        chain = before.membership.chains[self.service]
        notes = (
            (NOTE, f"{self.service} {w.change.cid}", w.change.encode())
            for w in self.proposals(index)
        )
        restored = ev.Restored(
            ((self.service, "lab", True),),
            tuple((self.service, change.encode()) for change in chain.changes(-1)),
            (),
            notes=tuple(notes),
        )
        peer = self.peers[index]
        self.cores[peer] = NodeCore(before.ctx.key, before.ctx.config)
        self.do(peer, restored)

    def proposals(self, index: int) -> list[Any]:
        return self.core(index).membership.proposals.of(self.service)

    def three_admins(self, threshold: int = 2) -> "Lab":
        """All three nodes become admins of whom `threshold` have to sign."""
        self.act(0, ev.SetAdmins, tuple(self.peers[:3]), threshold)
        if threshold > 1:
            self.act(1, ev.SignProposal)
        return self


# -- members ------------------------------------------------------------------------------


def test_roles_are_added_to_a_member_by_name_or_key_and_taken_again() -> None:
    lab = Lab()
    name = lab.name(1)
    lab.act(0, ev.Grant, name, ("read",))
    lab.act(0, ev.Grant, lab.peers[1], ("admin",))
    assert lab.list_at(2).roles_of(lab.peers[1]) == ("admin", "compute", "read", "submit")
    assert lab.list_at().admins == (lab.peers[0], lab.peers[1])
    lab.act(0, ev.Revoke, name, ("compute", "admin"))
    assert lab.list_at(2).roles_of(lab.peers[1]) == ("read", "submit")
    assert lab.list_at().admins == (lab.peers[0],)
    lab.act(0, ev.Revoke, lab.peers[1])
    assert lab.list_at(2).member_of(lab.peers[1]) is None
    assert lab.fails(0, ev.Revoke, name) == f"no member {name!r} in the service"


def test_a_grant_that_changes_nothing_makes_no_change() -> None:
    lab = Lab()
    epoch = lab.chain().epoch
    answer = lab.act(0, ev.Grant, lab.name(1), ("submit",))
    assert (answer["changed"], lab.chain().epoch) == (False, epoch)


def test_a_key_of_nobody_becomes_a_member_with_a_name_that_is_free() -> None:
    lab = Lab()
    peer = SigningKey(bytes([77]) * 32).peer
    assert lab.act(0, ev.Grant, peer, ("submit",), " Jose\u0301")["member"] == "José"
    other = SigningKey(bytes([78]) * 32).peer
    assert lab.act(0, ev.Grant, other, ("submit",))["member"] == f"node-{other[-6:]}"
    taken = SigningKey(bytes([79]) * 32).peer
    lab.act(0, ev.RenameMember, "José", f"NODE-{taken[-6:]}")
    assert lab.act(0, ev.Grant, taken, ("submit",))["member"] == f"node-{taken[-7:]}"
    assert "looks like" in lab.fails(0, ev.RenameMember, lab.name(1), f"Node-{taken[-6:]}")
    assert "no member and no peer id" in lab.fails(0, ev.Grant, "Eve", ("submit",))


def test_one_key_of_several_is_removed_alone_and_roles_are_the_members() -> None:
    lab = Lab()
    second = SigningKey(bytes([77]) * 32).peer
    name = lab.name(1)
    lab.act(0, ev.Grant, second, ("submit",), name)
    assert "roles are those of member" in lab.fails(0, ev.Revoke, second, ("submit",))
    assert "2 keys" in lab.fails(0, ev.Grant, name, ("admin",))
    lab.act(0, ev.Revoke, second)
    assert lab.list_at(2).members[name] == (("compute", "submit"), (lab.peers[1],))


def test_the_last_admin_stays_and_others_may_not_act() -> None:
    lab = Lab()
    assert "0 admins would be left" in lab.fails(0, ev.Revoke, lab.name(0))
    assert "0 admins would be left" in lab.fails(0, ev.Revoke, lab.name(0), ("admin",))
    for act in ((ev.Grant, lab.peers[2], ("read",)), (ev.Revoke, lab.peers[2]), (ev.EndService,)):
        assert "no admin" in lab.fails(1, *act)
    assert "no member" in lab.fails(0, ev.SetAdmins, (SigningKey(bytes(32)).peer,), 1)


def test_a_renamed_member_keeps_keys_roles_and_what_he_did() -> None:
    lab = Lab()
    asked = lab.act(1, ev.Submit, definition("write"), RESOURCES)
    lab.act(0, ev.RenameMember, lab.name(1), "Ada")
    assert lab.list_at(2).members["Ada"] == (("compute", "submit"), (lab.peers[1],))
    assert asked["request"] in lab.core(0).fold(lab.service).requests


def test_after_the_end_nobody_has_a_role_and_the_name_is_free_again() -> None:
    lab = Lab()
    lab.act(0, ev.EndService)
    assert all(lab.list_at(2).roles_of(peer) == () for peer in lab.peers)
    assert "has ended" in lab.fails(0, ev.Grant, lab.peers[1], ("read",))
    again = lab.call(lab.peers[0], ev.CreateService(900, "lab", "01"))["service"]
    names = lab.core(0).membership.petnames
    assert (names[again], names[lab.service]) == ("lab", f"lab~{lab.service[-4:]}")


# -- apps ---------------------------------------------------------------------------------


def test_jobs_of_a_removed_app_are_not_run_until_it_is_back() -> None:
    lab = Lab()
    lab.act(0, ev.RemoveApp, "hello")
    lab.executed.clear()
    assert "no app 'hello'" in lab.fails(1, ev.Submit, definition("write"), RESOURCES)
    assert "no app 'hello'" in lab.fails(0, ev.RemoveApp, "hello")
    answer = lab.act(0, ev.InstallApp, APP)
    assert (answer["updated"], answer["changed"]) == (False, True)
    assert lab.act(0, ev.InstallApp, APP)["changed"] is False
    assert lab.act(0, ev.InstallApp, {**APP, "description": "new"})["updated"] is True
    lab.act(1, ev.Submit, definition("write"), RESOURCES)
    assert len(lab.executed) == 1


def test_an_app_has_names_that_jobs_can_be_submitted_by() -> None:
    lab = Lab()
    processors: Any = [{**APP["processors"][0], "name": "a/b"}]  # type: ignore[dict-item]
    for changed, flaw in (
        ({"name": "a/b"}, "'a/b' holds a slash"),
        ({"name": "a\n"}, "cannot be seen"),
        ({"processors": processors}, "'a/b' holds a slash"),
    ):
        assert flaw in lab.fails(0, ev.InstallApp, {**APP, **changed})


def test_an_open_job_of_a_removed_app_waits_and_goes_on_when_the_app_is_back() -> None:
    lab = Lab()
    asked = lab.act(0, ev.Submit, {**definition("write"), "cacheBust": "x"}, RESOURCES)
    lab.executed.clear()
    lab.cut_off(1, 2)  # nobody is there to run it
    waiting = lab.act(0, ev.Submit, definition("write"), RESOURCES)
    lab.act(0, ev.RemoveApp, "hello")
    for index in (1, 2):
        lab.connect(lab.peers[0], lab.peers[index])
    lab.pass_time(3000)
    assert lab.executed == []
    fold = lab.core(0).fold(lab.service)
    assert fold.requests[waiting["request"]].answer is None
    assert fold.requests[asked["request"]].answer is not None, "what is done stays"
    lab.act(0, ev.InstallApp, APP)
    lab.pass_time(3000)
    assert lab.core(0).fold(lab.service).requests[waiting["request"]].answer is not None


# -- cuts ---------------------------------------------------------------------------------


def _record_of(lab: Lab, index: int, boot: bytes, first: int, prev: bytes, at_ms: int) -> Segment:
    key = lab.core(index).ctx.key
    record = Cancel(("ab" * 32,), at_ms)
    return Segment.seal(key, lab.service, boot, first, lab.chain().epoch, prev, [record])


def test_a_removal_asks_members_first_what_the_removed_wrote() -> None:
    lab = Lab()
    boot = b"x" * 16
    segment = _record_of(lab, 1, boot, 0, GENESIS, lab.now_ms)
    # Only node 2 has heard of it when node 1 is removed.
    frame = MESSAGES.encode(Push(segment.encode(), False))
    lab.do(lab.peers[2], ev.FrameReceived(lab.peers[1], frame))
    lab.queue.clear()
    assert lab.core(0).logs.get(segment.hash) is None
    lab.act(0, ev.Revoke, lab.name(1))
    [cutting] = lab.chain(2).cuttings(lab.peers[1])
    assert cutting.cuts[LogId(lab.peers[1], boot, 0)].hash == segment.hash
    assert lab.core(2).logs.get(segment.hash) is not None
    assert lab.core(2).logs.logs_of(lab.service)[segment.log].accepted == 1


def test_a_removal_does_not_wait_longer_than_its_limit_for_members_that_say_nothing() -> None:
    lab = Lab()
    lab.number += 1
    lab.do(lab.peers[0], ev.Revoke(lab.number, "lab", lab.name(1)))
    lab.queue.clear()  # what is asked is lost
    assert lab.number not in lab.answers
    due_ms = lab.core(0).next_deadline_ms()
    assert due_ms is not None
    assert due_ms <= lab.now_ms + CUT_WAIT_MS
    lab.now_ms += CUT_WAIT_MS
    lab.do(lab.peers[0], ev.TimePassed())
    assert isinstance(lab.answers[lab.number], ef.Reply)
    assert lab.list_at().member_of(lab.peers[1]) is None


def test_since_chooses_the_cut_by_when_records_were_issued() -> None:
    lab = Lab()
    boot, prev, hashes = b"y" * 16, GENESIS, []
    for number, at_ms in enumerate((10, 20, 30)):
        segment = _record_of(lab, 1, boot, number, prev, at_ms)
        prev = segment.hash
        hashes.append(prev)
        frame = MESSAGES.encode(Push(segment.encode(), False))
        lab.do(lab.peers[0], ev.FrameReceived(lab.peers[1], frame))
    lab.settle()
    log = LogId(lab.peers[1], boot, 0)
    assert lab.core(0).logs.logs_of(lab.service)[log].accepted == 3
    lab.act(0, ev.Revoke, lab.name(1), (), 25)
    assert lab.core(0).logs.logs_of(lab.service)[log].accepted == 2
    [cutting] = lab.chain().cuttings(lab.peers[1])
    assert cutting.cuts[log].hash == hashes[1]
    assert LogId(lab.peers[1], lab.core(1).ctx.config.boot, 0) not in cutting.cuts


# -- proposals ----------------------------------------------------------------------------


def test_a_change_of_two_signatures_waits_for_the_second() -> None:
    lab = Lab()
    lab.act(0, ev.SetAdmins, tuple(lab.peers[:3]), 2)
    assert lab.list_at().threshold == 1, "the new threshold signs as well as the old"
    assert lab.act(2, ev.SignProposal)["changed"]
    assert [lab.list_at(i).threshold for i in range(3)] == [2, 2, 2]
    answer = lab.act(0, ev.RenameMember, lab.name(2), "Bob")
    assert answer["proposal"]
    assert not answer["changed"]
    assert "Bob" not in lab.list_at().members
    for index in range(3):
        [waiting] = lab.proposals(index)
        assert (waiting.signers, waiting.is_newest) == ((lab.peers[0],), True)
    assert lab.act(1, ev.SignProposal, answer["proposal"][-8:])["changed"]
    assert all("Bob" in lab.list_at(i).members for i in range(3))
    assert [lab.proposals(i) for i in range(3)] == [[], [], []]


def test_the_creator_grants_the_admin_role_and_raises_the_threshold() -> None:
    lab = Lab()
    lab.act(0, ev.Grant, lab.name(1), ("admin",))
    lab.act(0, ev.SetAdmins, tuple(lab.peers[:2]), 2)
    lab.act(1, ev.SignProposal)
    assert lab.list_at(2).threshold == 2
    assert "admin" in lab.list_at().roles_of(lab.peers[1])


def test_nobody_signs_twice_nor_who_is_no_admin() -> None:
    lab = Lab(4).three_admins(3)
    lab.act(2, ev.SignProposal)
    lab.act(0, ev.RenameMember, lab.name(1), "Ada")
    assert lab.act(0, ev.SignProposal)["changed"] is False
    assert lab.act(1, ev.SignProposal)["changed"] is False
    assert lab.act(1, ev.SignProposal)["changed"] is False
    assert lab.proposals(3) == [], "a member who may not sign is not asked"
    data = lab.proposals(0)[0].change.encode()
    assert "no admin" in lab.fails(3, ev.SignProposal, "", data)
    assert "Ada" not in lab.list_at().members
    assert lab.act(2, ev.SignProposal)["changed"]


def test_losing_one_key_of_three_does_not_kill_the_service() -> None:
    lab = Lab(4).three_admins()
    lab.cut_off(0)  # its disk is gone
    admins = (lab.peers[1], lab.peers[2], lab.peers[3])
    lab.act(1, ev.SetAdmins, admins, 2)
    lab.act(2, ev.SignProposal)
    assert lab.list_at(3).admins == admins
    lab.act(3, ev.Revoke, lab.name(0))
    lab.act(1, ev.SignProposal)
    assert lab.list_at(2).member_of(lab.peers[0]) is None
    lab.connect(lab.peers[0], lab.peers[1])
    assert lab.list_at(0).roles_of(lab.peers[0]) == (), "who has the old key is told"
    assert "no admin" in lab.fails(0, ev.RenameMember, lab.name(1), "Eve")


def test_a_proposal_survives_a_restart_and_reaches_an_admin_who_connects_later() -> None:
    lab = Lab().three_admins()
    lab.cut_off(0, 1, 2)
    lab.act(0, ev.RenameMember, lab.name(2), "Bob")
    lab.restart(0)
    assert len(lab.proposals(0)) == 1
    lab.connect(lab.peers[0], lab.peers[1])
    assert lab.act(1, ev.SignProposal)["changed"]
    assert "Bob" in lab.list_at(0).members
    assert lab.proposals(0) == []


def test_signatures_that_are_given_apart_are_united() -> None:
    lab = Lab(4)
    lab.act(0, ev.SetAdmins, tuple(lab.peers), 4)
    for index in (1, 2, 3):
        lab.act(index, ev.SignProposal)
    assert lab.list_at().threshold == 4
    lab.act(0, ev.RenameMember, lab.name(1), "Ada")
    lab.cut_off(0, 1, 2, 3)
    for index in (1, 2, 3):
        lab.act(index, ev.SignProposal)
    assert {len(lab.proposals(i)[0].signers) for i in (1, 2, 3)} == {2}
    lab.connect(lab.peers[1], lab.peers[2])
    lab.connect(lab.peers[2], lab.peers[3])
    assert "Ada" in lab.list_at(2).members
    assert "Ada" in lab.list_at(3).members


def test_two_second_signatures_at_once_are_one_change() -> None:
    lab = Lab().three_admins()
    lab.act(0, ev.RenameMember, lab.name(2), "Bob")
    lab.cut_off(0, 1, 2)
    assert lab.act(1, ev.SignProposal)["changed"]
    assert lab.act(2, ev.SignProposal)["changed"]
    lab.connect(lab.peers[1], lab.peers[2])
    lab.connect(lab.peers[0], lab.peers[1])
    assert {lab.chain(index).digest for index in range(3)} == {lab.chain(0).digest}
    assert lab.chain(0).losing_heads() == []
    [told] = [t for t in lab.chain(0).story() if t.change.cid == lab.chain(0).head]
    assert set(told.signers) == set(lab.peers[:3])


def test_an_app_and_the_end_of_a_service_wait_for_the_second_signature_too() -> None:
    lab = Lab().three_admins()
    answer = lab.act(0, ev.InstallApp, {**APP, "description": "new"})
    assert (answer["updated"], answer["changed"]) == (True, False)
    lab.act(1, ev.SignProposal)
    assert lab.list_at(2).apps["hello"]["description"] == "new"
    lab.act(2, ev.EndService)
    assert not lab.list_at().ended
    lab.act(0, ev.SignProposal)
    assert all(lab.list_at(index).ended for index in range(3))


def test_a_proposal_does_not_fit_once_the_list_has_changed_and_is_made_anew() -> None:
    lab = Lab().three_admins()
    first = lab.act(0, ev.RenameMember, lab.name(2), "Bob")["proposal"]
    second = lab.act(1, ev.RenameMember, lab.name(1), "Ada")["proposal"]
    lab.act(2, ev.SignProposal, second)
    [stale] = lab.proposals(1)
    assert (stale.change.cid, stale.is_newest) == (first, False)
    assert "does not fit any more" in lab.fails(1, ev.SignProposal, first)
    fresh = lab.act(0, ev.RenameMember, lab.name(0), "Eve")["proposal"]
    assert lab.act(2, ev.SignProposal)["signed"] == fresh, "without a name it is what fits"
    renewed = lab.act(0, ev.RenewProposal, first)["proposal"]
    assert renewed != first
    assert lab.act(2, ev.SignProposal, renewed)["changed"]
    assert {"Ada", "Bob"} <= set(lab.list_at(1).members)
    assert lab.proposals(0) == []


def test_a_removal_that_is_made_anew_has_the_cuts_of_now() -> None:
    lab = Lab(4).three_admins()
    first = lab.act(0, ev.Revoke, lab.name(3))["proposal"]
    second = lab.act(1, ev.RenameMember, lab.name(1), "Ada")["proposal"]
    lab.act(2, ev.SignProposal, second)
    lab.act(3, ev.Submit, definition("write"), RESOURCES)
    renewed = lab.act(0, ev.RenewProposal, first)["proposal"]
    lab.act(1, ev.SignProposal, renewed)
    [cutting] = lab.chain().cuttings(lab.peers[3])
    assert [cut.log.boot for cut in cutting.cuts.values()] == [lab.core(3).ctx.config.boot]


def test_what_is_withdrawn_here_is_not_taken_again_from_others() -> None:
    lab = Lab().three_admins()
    proposal = lab.act(0, ev.RenameMember, lab.name(2), "Bob")["proposal"]
    lab.act(1, ev.WithdrawProposal, proposal)
    lab.cut_off(1)
    lab.connect(lab.peers[0], lab.peers[1])
    assert [len(lab.proposals(i)) for i in range(3)] == [1, 0, 1]
    data = lab.proposals(0)[0].change.encode()
    assert lab.act(1, ev.SignProposal, "", data)["changed"], "by file it is the owner's wish"


def test_admins_who_never_meet_sign_by_file_in_both_directions() -> None:
    lab = Lab().three_admins()
    lab.cut_off(0, 1, 2)
    lab.act(0, ev.RenameMember, lab.name(2), "Bob")
    data = lab.proposals(0)[0].change.encode()
    assert lab.act(1, ev.SignProposal, "", data)["changed"]
    back = lab.chain(1).changes(-1)[-1].encode()
    assert lab.act(0, ev.SignProposal, "", back)["changed"]
    assert lab.chain(0).head == lab.chain(1).head


@pytest.mark.parametrize("data", [b"", b"x", b"\x92\xc4\x01x\x90"])
def test_a_file_that_is_no_proposal_is_refused_in_words(data: bytes) -> None:
    lab = Lab().three_admins()
    assert "no proposal" in lab.fails(1, ev.SignProposal, "", data)


def test_an_admin_who_floods_with_proposals_leaves_room_for_the_others() -> None:
    lab = Lab().three_admins()
    for number in range(PROPOSALS_PER_ADMIN_MAX):
        lab.act(0, ev.RenameMember, lab.name(2), f"B{number}x")
    assert "wait for signatures" in lab.fails(0, ev.RenameMember, lab.name(2), "more")
    change = lab.chain().propose(
        [{"op": "rename", "member": lab.name(2), "to": "more"}], [lab.core(0).ctx.key], 0
    )
    frame = MESSAGES.encode(Proposal(lab.service, change.encode()))
    lab.do(lab.peers[1], ev.FrameReceived(lab.peers[0], frame))
    assert lab.refused[-1].reason == "a proposal beyond what is kept"
    assert len(lab.proposals(1)) == PROPOSALS_PER_ADMIN_MAX
    lab.act(1, ev.RenameMember, lab.name(1), "Ada")
    assert len(lab.proposals(2)) == PROPOSALS_PER_ADMIN_MAX + 1


def test_what_does_not_fit_any_more_is_not_taken_from_others() -> None:
    lab = Lab().three_admins()
    ops = [{"op": "rename", "member": lab.name(2), "to": "Bob"}]
    stale = lab.chain().propose(ops, [lab.core(0).ctx.key], 0)
    lab.act(0, ev.RenameMember, lab.name(1), "Ada")
    lab.act(1, ev.SignProposal)
    frame = MESSAGES.encode(Proposal(lab.service, stale.encode()))
    lab.do(lab.peers[1], ev.FrameReceived(lab.peers[0], frame))
    assert lab.proposals(1) == []
    assert lab.core(1).ctx.counters["stale proposals"] == 1


def test_a_proposal_that_no_admin_signed_is_refused_and_counted() -> None:
    lab = Lab(4).three_admins()
    ops = [{"op": "rename", "member": lab.name(2), "to": "Eve"}]
    for key in (lab.core(3).ctx.key, SigningKey(bytes(32))):
        change = lab.chain().propose(ops, [key], 0)
        frame = MESSAGES.encode(Proposal(lab.service, change.encode()))
        lab.do(lab.peers[1], ev.FrameReceived(lab.peers[3], frame))
    right = lab.chain().propose(ops, [lab.core(0).ctx.key], 0)
    frame = MESSAGES.encode(Proposal(lab.service, right.encode()))
    lab.do(lab.peers[1], ev.FrameReceived(lab.peers[3], frame))
    assert lab.core(1).ctx.counters["refused: an invalid proposal"] == 2
    assert (
        lab.core(1).ctx.counters["refused: a proposal to or of somebody who may not sign it"] == 1
    )
    assert lab.proposals(1) == []


# -- forks --------------------------------------------------------------------------------


def test_what_a_losing_branch_took_is_given_back_when_an_admin_signs_over_it() -> None:
    lab = Lab(4)
    lab.act(0, ev.SetAdmins, tuple(lab.peers[:2]), 1)
    lab.cut_off(0, 1)
    lab.act(0, ev.RenameMember, lab.name(3), "Bob")
    lab.act(1, ev.Revoke, "node-" + lab.peers[3][-6:], ("compute",))
    lab.connect(lab.peers[0], lab.peers[1])
    assert lab.list_at(1).roles_of(lab.peers[3]) == ("submit",)
    assert len(lab.chain(1).losing_heads()) == 1
    lab.act(1, ev.SignOver)
    assert lab.list_at(0).roles_of(lab.peers[3]) == ("compute", "submit")
    assert lab.chain().losing_heads() == []
    assert "no branch" in lab.fails(0, ev.SignOver)


def test_who_lost_one_role_on_a_longer_losing_branch_is_heard_in_the_others() -> None:
    lab = Lab(4)
    lab.act(0, ev.SetAdmins, tuple(lab.peers[:2]), 1)
    lab.cut_off(0, 1)
    lab.act(0, ev.RenameMember, lab.name(3), "Bob")
    lab.act(1, ev.RenameMember, lab.name(2), "Carol")
    lab.act(1, ev.Revoke, "node-" + lab.peers[3][-6:], ("compute",))
    lab.connect(lab.peers[0], lab.peers[1])
    lab.connect(lab.peers[0], lab.peers[3])
    assert lab.list_at(3).roles_of(lab.peers[3]) == ("submit",)
    ends = [lab.chain(3).epoch, lab.chain(3).cuttings(lab.peers[3])[-1].epoch]
    assert ends[0] < ends[1]  # the branch that took the role goes on beyond the one that won
    for _ in range(2):  # and in one log
        asked = lab.act(3, ev.Submit, definition("write"), RESOURCES, "skip_cache")
        state = lab.core(0).fold(lab.service).requests[asked["request"]]
        assert state.author == lab.peers[3]
    assert len(lab.core(0).logs.logs_of(lab.service)[_log_of(lab, state)].counting()) > 1


def _log_of(lab: Lab, state: RequestState) -> LogId:
    segment = lab.core(0).logs.get(state.segment)
    assert segment is not None
    return segment.log
