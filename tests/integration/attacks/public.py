"""Public services: strangers who ask for more than they may have, and a member who carries more
for them than he may."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import trio

from pairio_protocol.documents import encode
from pairio_protocol.messages import (
    Ask,
    Asked,
    AskNoMore,
    Changes,
    Follow,
    PresenceUpdate,
    WantChanges,
)
from pairio_protocol.normalise import normalise
from pairio_protocol.open_submit import OpenSubmit
from pairio_protocol.records import Request, Resources, ResultDocument
from pairio_protocol.service import Chain
from tests.integration.attacks.doors import about, answer_for_block, presence
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.members import FORBIDDEN, document, wish
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

PUBLIC = "Public services: what a stranger asks"
SPONSORED = "Public services: a member who sponsors more than he may"
GUEST = "Public services: a guest at the doors of members"
KEY = "a key of his own"
LINK = "a public link, two keys"
REFUSED = "refused: a stranger's ask: "
SMALL = Resources(1000, 1024, 0, 60_000)
LIMITS = OpenSubmit(
    requests_per_hour=20, open_max=4, all_per_hour=200, all_open_max=16,
    cpu_millicores=1000, memory_mib=1024, gpus=0, time_ms=60_000,
)  # fmt: skip


async def opened(lab: Lab, **limits: int) -> Chain:
    """Make a public service in which the node sponsors, and nobody computes: what is asked for
    stays open."""
    policy = {"op": "policy", "policy": {"open_submit": asdict(replace(LIMITS, **limits))}}
    app = {"op": "app", "app": lab.chain.now.apps["hello_world"]}
    members = (lab.add("node", "submit"), lab.add("mallory", "submit"), lab.add("reader", "read"))
    return await lab.found("open", *members, app, policy)


def ask_for(
    lab: Lab, service: str, name: str, resources: Resources = SMALL, data: bytes = b""
) -> Ask:
    """Return an ask for a job that is its own by its name."""
    return Ask(service, name, data or encode(document(lab, name)), resources, ())


def counting(lab: Lab, cid: str) -> dict[str, Any]:
    """Return the document of a job that counts the characters of some content."""
    definition = {
        "appName": "hello_world", "processorName": "count_characters",
        "inputFiles": [{"name": "input", "fileBaseName": "x", "url": f"ipfs://{cid}"}],
        "outputFiles": [{"name": "output"}], "parameters": [],
    }  # fmt: skip
    return normalise(definition, lab.chain.now.apps["hello_world"])


async def asked(peer: Peer, ask: Ask) -> Asked:
    """Return the answer to an ask; who asks too much for this second asks again."""
    with trio.fail_after(30):
        while True:
            peer.heard.clear()
            peer.say(ask)
            answer = await peer.hears(lambda m: isinstance(m, Asked) and m.ask == ask.ask)
            assert isinstance(answer, Asked), "it is not answered"
            if answer.code != "busy":
                return answer
            await trio.sleep(0.3)  # house: waiting for another process


async def count_of_jobs(lab: Lab, service: str, expected: int) -> None:
    """See that a service has so many jobs, and no more."""
    jobs: Callable[[], list[Any]] = lambda: lab.get(f"jobs?serviceName={service}")["jobs"]  # noqa: E731
    assert await until(lambda: len(jobs()) >= expected), "a job that was taken is not there"
    assert len(jobs()) == expected, f"{len(jobs())} jobs, {expected} were taken"


# -- what a stranger asks ----------------------------------------------------------------------


@attack(PUBLIC, "a job asked of a service that is not public", has=f"{KEY}, the service's id",
        does="asks for a job", counted=f"{REFUSED}not_public")  # fmt: skip
async def _private(lab: Lab) -> None:
    answer = await asked(lab.stranger, ask_for(lab, lab.service, "private"))
    assert (answer.state, answer.code) == ("refused", "not_public"), answer


@attack(PUBLIC, "the list of a service that is not public", has=f"{KEY}, the service's id",
        does="wants to be a guest", counted=f"{REFUSED}not_public")  # fmt: skip
async def _follow(lab: Lab) -> None:
    lab.stranger.heard.clear()
    lab.stranger.say(Follow(lab.service, 0, ""))
    answer = await lab.stranger.hears(lambda m: isinstance(m, Asked) and m.service == lab.service)
    assert answer is not None, "it is not answered"
    assert not any(isinstance(m, Changes) for m in lab.stranger.heard), "he was shown the list"


@attack(PUBLIC, "flood of guests' questions for the list", has="a public link",
        does="asks 60 times in a moment", counted=f"{REFUSED}busy")  # fmt: skip
async def _follows(lab: Lab) -> None:
    chain = await opened(lab)
    lab.stranger.say(*(Follow(chain.service, 0, "") for _ in range(60)))


@attack(PUBLIC, "flood of questions for a public list's changes", has="a public link",
        does="asks for all changes 60 times in a moment",
        counted="refused: changes asked for by a stranger")  # fmt: skip
async def _wants(lab: Lab) -> None:
    chain = await opened(lab)
    lab.visitor.say(*(WantChanges(chain.service, 0, "") for _ in range(60)))


@attack(PUBLIC, "flood of asks", has="a public link", does="asks for 60 jobs in a moment",
        counted=f"{REFUSED}busy")  # fmt: skip
async def _flood(lab: Lab) -> None:
    chain = await opened(lab, open_max=1)
    lab.stranger.say(*(ask_for(lab, chain.service, f"flood {n}") for n in range(60)))
    await lab.has_taken(lab.stranger)
    jobs = lab.get(f"jobs?serviceName={chain.service}")["jobs"]
    assert len(jobs) <= 1, f"{len(jobs)} jobs were taken, one may be open"


def _too_much(what: str, resources: Resources) -> None:
    @attack(PUBLIC, f"a guest's job of more {what} than guests may have", has="a public link",
            does="asks for it", counted=f"{REFUSED}limits")  # fmt: skip
    async def attempt(lab: Lab) -> None:
        chain = await opened(lab)
        answer = await asked(lab.stranger, ask_for(lab, chain.service, what, resources))
        assert (answer.state, answer.code) == ("refused", "limits"), answer
        await count_of_jobs(lab, chain.service, 0)


_too_much("CPUs", replace(SMALL, cpu_millicores=1001))
_too_much("memory", replace(SMALL, memory_mib=1025))
_too_much("GPUs", replace(SMALL, gpus=1))
_too_much("time", replace(SMALL, time_ms=60_001))


def _beyond(name: str, does: str, code: str, by: tuple[str, str], **limit: int) -> None:
    @attack(PUBLIC, name, has="a public link" if by[0] == by[1] else LINK, does=does,
            counted=f"{REFUSED}{code}")  # fmt: skip
    async def attempt(lab: Lab) -> None:
        chain = await opened(lab, **limit)
        first = await asked(lab.peers[by[0]], ask_for(lab, chain.service, f"{name} 1"))
        assert first.state == "waits", first
        second = await asked(lab.peers[by[1]], ask_for(lab, chain.service, f"{name} 2"))
        assert (second.state, second.code) == ("refused", code), second
        await count_of_jobs(lab, chain.service, 1)


_ONE, _TWO = ("stranger", "stranger"), ("stranger", "visitor")
_beyond("more jobs of one guest in an hour", "asks for one more", "per_hour", _ONE,
        requests_per_hour=1)  # fmt: skip
_beyond("more open jobs of one guest", "asks for one more", "open", _ONE, open_max=1)
_beyond("more jobs of all guests in an hour", "asks for one more, with the other key", "per_hour",
        _TWO, all_per_hour=1)  # fmt: skip
_beyond("more open jobs of all guests", "asks for one more, with the other key", "all_open", _TWO,
        all_open_max=1)  # fmt: skip


@attack(PUBLIC, "a guest who comes and goes", has="a public link",
        does="asks, goes, comes back and asks again, so that what he has open is forgotten",
        counted=f"{REFUSED}open")  # fmt: skip
async def _returns(lab: Lab) -> None:
    chain = await opened(lab, open_max=1)
    first = await asked(lab.visitor, ask_for(lab, chain.service, "he stays"))
    assert first.state == "waits", first
    await lab.reconnect("visitor")
    second = await asked(lab.visitor, ask_for(lab, chain.service, "he is back"))
    assert (second.state, second.code) == ("refused", "open"), second
    await count_of_jobs(lab, chain.service, 1)


@attack(PUBLIC, "a guest's job that reads a member's content", has="the CID of a member's output",
        does="asks for a job that counts its characters", counted=f"{REFUSED}inputs")  # fmt: skip
async def _reads(lab: Lab) -> None:
    chain = await opened(lab)
    counts = counting(lab, lab.job["outputFileResults"][0]["cid"])
    answer = await asked(lab.stranger, ask_for(lab, chain.service, "reads", data=encode(counts)))
    assert (answer.state, answer.code) == ("refused", "inputs"), answer


@attack(PUBLIC, "a guest's job of an app that is not there", has="a public link",
        does="asks for one of his own", counted=f"{REFUSED}definition")  # fmt: skip
async def _no_app(lab: Lab) -> None:
    chain = await opened(lab)
    own = {**document(lab, "own"), "app": "his_own"}
    answer = await asked(lab.stranger, ask_for(lab, chain.service, "own", data=encode(own)))
    assert (answer.state, answer.code) == ("refused", "definition"), answer


@attack(PUBLIC, "a guest's job with other code than the app's", has="a public link",
        does="asks for the app's job, and names code of his own",
        counted=f"{REFUSED}definition")  # fmt: skip
async def _other_code(lab: Lab) -> None:
    chain = await opened(lab)
    own = {**document(lab, "code"), "code": lab.job["outputFileResults"][0]["cid"]}
    answer = await asked(lab.stranger, ask_for(lab, chain.service, "code", data=encode(own)))
    assert (answer.state, answer.code) == ("refused", "definition"), answer


@attack(PUBLIC, "another guest's ask, withdrawn", has="a public link, the name of his ask",
        does="says that it is not wanted any more",
        counted="refused: an ask that is not known is withdrawn")  # fmt: skip
async def _withdrawn(lab: Lab) -> None:
    chain = await opened(lab)
    assert (await asked(lab.stranger, ask_for(lab, chain.service, "mine"))).state == "waits"
    await count_of_jobs(lab, chain.service, 1)
    lab.visitor.say(AskNoMore(chain.service, "mine"))
    await lab.has_taken(lab.visitor)
    (job,) = lab.get(f"jobs?serviceName={chain.service}")["jobs"]
    assert job["status"] == "pending", job["status"]


# -- a member who sponsors ---------------------------------------------------------------------


def _sponsored(
    name: str, does: str, counted: str, by: str = "mallory", is_public: bool = True, **fields: Any
) -> None:
    @attack(SPONSORED, name, has="role submit" if by == "mallory" else "role read", does=does,
            counted=counted)  # fmt: skip
    async def attempt(lab: Lab) -> None:
        service, epoch = lab.service, lab.epoch
        if is_public:
            service, epoch = (await opened(lab)).service, 0
        record = carried(lab, name, **fields)
        peer = lab.peers[by]
        peer.push(peer.segment(service, epoch, record))
        await lab.has_taken(peer)
        if is_public:
            await count_of_jobs(lab, service, 0)


def carried(lab: Lab, name: str, **fields: Any) -> Request:
    """Return a request in the stranger's name, that a member may have written."""
    right = replace(wish(document(lab, name)), sponsor_of=lab.stranger.key.peer, resources=SMALL)
    return replace(right, **fields)


_CANNOT = "a sponsored request for more than a stranger may have"
_sponsored("a stranger's request in a service that is not public",
           "writes it into his log, in the stranger's name",
           "refused: a sponsored request in a service that is not public",
           is_public=False)  # fmt: skip
_sponsored("a stranger's request beyond the limits", "writes it into his log all the same",
           "refused: a sponsored request beyond the service's limits",
           resources=replace(SMALL, cpu_millicores=64_000))  # fmt: skip
_sponsored("a stranger's request that goes first", "gives it a priority", f"refused: {_CANNOT}",
           priority=100)  # fmt: skip
_sponsored("a stranger's request that runs anew each time", "writes it as one to be run anew",
           f"refused: {_CANNOT}", mode="skip_cache")  # fmt: skip
_sponsored("a stranger's request for chosen nodes", "names the node that is to run it",
           f"refused: {_CANNOT}", targets=("node",))  # fmt: skip
_sponsored("a request in nobody's name", "names no peer that there could be",
           "refused: a request that sponsors nobody", sponsor_of="nobody")  # fmt: skip
_sponsored("a stranger's request, written by a reader", "sponsors without the role submit",
           FORBIDDEN, by="reader")  # fmt: skip


@attack(SPONSORED, "a stranger's request that reads a member's content", has="role submit",
        does="writes a request for a job that counts the characters of a member's output",
        counted=f"refused: {_CANNOT}")  # fmt: skip
async def _sponsored_reader(lab: Lab) -> None:
    chain = await opened(lab)
    data = encode(counting(lab, lab.job["outputFileResults"][0]["cid"]))
    record = carried(lab, "reads", definition=data)
    lab.mallory.push(lab.mallory.segment(chain.service, 0, record))
    await lab.has_taken(lab.mallory)
    await count_of_jobs(lab, chain.service, 0)


# -- a guest at the doors ----------------------------------------------------------------------


async def fair(lab: Lab) -> dict[str, Any]:
    """Make, once, a public service whose node computes; let the stranger have a job done there as
    a guest, and the node one of its own."""
    if "fair" not in lab.made:
        made = await lab.call("POST", "services", {"name": "fair"})
        service = made["serviceId"]
        lab.aside.add(service)
        await lab.call("POST", "services/fair/apps", {"source": "hello_world"})
        await lab.call("POST", "services/fair/public", {})
        own = await lab.done("fair", "the member's own")
        answer = await asked(lab.stranger, ask_for(lab, service, "the guest's own"))
        assert answer.state in ("waits", "done"), answer
        done = await lab.stranger.hears(
            lambda m: isinstance(m, Asked) and (m.ask, m.state) == ("the guest's own", "done"), 60
        )
        assert done is not None, "the guest's job is not done"
        cid, _, _ = ResultDocument.decode(done.document).outputs["output"]
        app = lab.get("services/fair/apps")["apps"][0]
        lab.made["fair"] = {
            "service": service, "guests": cid, "members": own["outputFileResults"][0]["cid"],
            "bundle": app["bundle"],
        }  # fmt: skip
    found: dict[str, Any] = lab.made["fair"]
    return found


def _block(name: str, does: str, which: str, by: str) -> None:
    @attack(GUEST, name, has="a public link, the CID", does=does, counted="blocks_refused")
    async def attempt(lab: Lab) -> None:
        made = await fair(lab)
        answer = await answer_for_block(lab.stranger, made["service"], made["guests"])
        assert answer == b"\x01", "a guest does not get his own result either"
        answer = await answer_for_block(lab.peers[by], made["service"], made[which])
        assert answer == b"\x02", f"answered {answer!r}"


_block("another guest's result", "asks for its block", "guests", "visitor")
_block("a member's result, asked for by a guest", "asks for its block", "members", "stranger")
_block("the app's code, asked for by a guest", "asks for its block", "bundle", "stranger")


def _door(kind: str, does: str, counted: str) -> None:
    @attack(GUEST, f"{kind} of a guest", has="a public link", does=does, counted=counted)
    async def attempt(lab: Lab) -> None:
        made = await fair(lab)
        lab.stranger.say(about(lab, made["service"])[kind])


for _kind, _does in (
    ("digest", "begins sync"),
    ("frontier", "asks for all segments"),
    ("segments", "sends a segment of his own by sync"),
    ("lookup", "asks for a member's result by its job id"),
    ("bid", "asks for runs"),
    ("award", "awards a run to the node"),
    ("beat", "renews the lease of an attempt"),
    ("have", "says that he holds a run"),
    ("cancel_now", "ends an attempt"),
    ("hold", "has the node keep copies for him"),
):
    _door(_kind, _does, f"refused: {_kind} of a stranger")


@attack(GUEST, "push of a guest", has="a public link", does="pushes a segment that he signed",
        counted="refused: a segment of somebody who is no member")  # fmt: skip
async def _push(lab: Lab) -> None:
    made = await fair(lab)
    record = replace(wish(document(lab, "pushed")), resources=SMALL)
    lab.stranger.push(lab.stranger.segment(made["service"], 0, record))


@attack(GUEST, "presence of a guest", has="a public link", does="offers a large machine",
        counted="refused: presence of somebody who is no member")  # fmt: skip
async def _presence(lab: Lab) -> None:
    made = await fair(lab)
    data = presence(lab, lab.stranger.key, service=made["service"])
    lab.stranger.say(PresenceUpdate((data,)))
