"""The laboratory of the attack table: one node, a service whose list the test has written, and
peers with every kind of place on it.

    root    admin, honest          honest  may submit, is served throughout
    second  admin, malicious       mallory may submit      cruncher may compute     reader may read
    old     an admin once          xavier  was removed     yves     was removed and came back
    stranger, visitor in nothing, but rows let them join services of their own
    nobody  in nothing at all      guest   member of another service that the node is in
    The node is a relay, and the visitor is the relay that its owner named.
"""

import hashlib
import json
import os
import shutil
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from pairio_protocol.messages import (
    Ack,
    Asked,
    Changes,
    Digest,
    Follow,
    Frontier,
    LogHeight,
    LookedUp,
    Lookup,
)
from pairio_protocol.records import Cancel
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain, SignedChange
from pairio_protocol.signing import SigningKey
from tests.integration.attacks.peers import Peer, connected
from tests.integration.conftest import RunningNode, launch

__all__ = ["Lab", "laboratory", "until"]

_SEEDS = {
    name: hashlib.sha256(f"attacks {name}".encode()).digest()
    for name in (
        "root", "second", "honest", "mallory", "cruncher", "reader", "xavier", "yves", "old",
        "stranger", "visitor", "nobody", "guest",
    )
}  # fmt: skip
#: Whose own logs may grow: what they write is theirs. Everything else must stay as it was.
_SMALL = {"numCpus": 1, "memoryGb": 1, "numGpus": 0, "timeSec": 60}
_WRITERS = ("honest", "mallory", "cruncher", "reader", "second", "root", "guest", "yves")


async def until(is_so: Callable[[], Any], within_s: float = 20.0) -> bool:
    """Wait until something is so; False if it does not become so in time."""
    with trio.move_on_after(within_s):
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(0.02)  # house: waiting for another process
        return True
    return bool(is_so())


class Lab:
    """The node, the peers by name, and what of the node must not change."""

    def __init__(self, home: Path, work: Path, plants: tuple[str, ...] = ()) -> None:
        self._plants = plants
        self.node = self._launch(home)
        self.work = work
        self.peers = {name: Peer(name, seed) for name, seed in _SEEDS.items()}
        self.chain, self.other = Chain(), Chain()
        self._boot, self._head, self._seq = os.urandom(16), GENESIS, 0
        self.job: dict[str, Any] = {}
        self._made: set[str] = set()
        self.last_state = ""
        #: services that rows have made for themselves
        self.aside: set[str] = set()
        #: what rows have made that later rows use too
        self.made: dict[str, Any] = {}

    def _launch(self, home: Path) -> RunningNode:
        return launch(home, "--no-watchdog", plants=self._plants)

    def __getattr__(self, name: str) -> Peer:
        if name in _SEEDS:
            return self.peers[name]
        raise AttributeError(name)

    @property
    def service(self) -> str:
        """The id of the service that is attacked."""
        return self.chain.service

    @property
    def epoch(self) -> int:
        """Its newest change."""
        return self.chain.epoch

    def get(self, path: str) -> Any:
        """Ask the node's API."""
        return self.node.get(path)

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Do something by the node's API, as its owner would."""
        return await trio.to_thread.run_sync(self.node.call, method, path, body)

    async def upload(self, data: bytes) -> str:
        """Let the node's owner add bytes; return their CID."""
        found = json.loads((self.node.home / "api.json").read_text())
        headers = {"Authorization": f"Bearer {found['token']}"}
        request = urllib.request.Request(f"{found['url']}/api/v1/content", data, headers)

        def send() -> bytes:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return bytes(answer.read())

        return str(json.loads(await trio.to_thread.run_sync(send))["cid"])

    async def output(self, cid: str) -> Any:
        """Return what the JSON file with this CID says."""
        found = json.loads((self.node.home / "api.json").read_text())
        headers = {"Authorization": f"Bearer {found['token']}"}
        request = urllib.request.Request(f"{found['url']}/api/v1/content/{cid}", headers=headers)

        def read() -> bytes:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return bytes(answer.read())

        return json.loads(await trio.to_thread.run_sync(read))

    def counters(self) -> dict[str, int]:
        """Return what the node has counted, blocks included."""
        status = self.get("status")
        return {**status["counters"], **status["blocks"]}

    def change(self, chain: Chain, key: SigningKey, *ops: dict[str, Any]) -> None:
        """Make a change and tell the node."""
        change = chain.propose(list(ops), [key], 1_700_000_000_000)
        chain.add(change)
        self.root.say(Changes(chain.service, (change.encode(),), False))

    async def found(self, name: str, *ops: dict[str, Any], **how: Any) -> Chain:
        """Make a service that is a row's own affair, and let the node take it up. `how` may name
        its `admins`, with `threshold` and the `keys` that sign."""
        admins = how.get("admins") or [self.root.key.peer]
        create = {"op": "create", "name": f"{name}{os.urandom(3).hex()}", "admins": admins,
                  "threshold": how.get("threshold", 1), "nonce": os.urandom(8).hex()}  # fmt: skip
        chain = Chain()
        keys = how.get("keys") or [self.root.key]
        chain.add(chain.propose([create, *ops], keys, 1_700_000_000_000))
        self.aside.add(chain.service)
        self.change_all(chain)
        await self.has_taken(self.root)
        return chain

    def add(self, name: str, *roles: str) -> dict[str, Any]:
        """Return the op that makes a peer, or the node, a member."""
        peer = self.node.info["peerId"] if name == "node" else self.peers[name].key.peer
        return _add(name, peer, list(roles))

    def change_all(self, chain: Chain) -> None:
        """Tell the node all changes of a service."""
        for change in chain.changes():
            self.root.say(Changes(chain.service, (change.encode(),), False))

    def _has_learnt(self) -> bool:
        """Take the changes that the node has made into the test's own chain; say if it has all."""
        for message in self.honest.heard:
            if isinstance(message, Changes) and message.service == self.service:
                for data in message.changes:
                    self.chain.add(SignedChange.decode(data))
        return bool(self.chain.head == self.get("services/lab")["head"])

    # -- what must not change ---------------------------------------------------------------

    def keep(self, request: str) -> None:
        """A row has made a request of an honest member: it is to be there afterwards."""
        self._made.add(request)

    async def submit_open(self, tag: str) -> dict[str, Any]:
        """Let the node submit a job that needs a GPU, and so stays open."""
        job = await self.submit("lab", tag, numGpus=1)
        self.keep(job["requestId"])
        return job

    async def submit(self, service: str, tag: str, **resources: float) -> dict[str, Any]:
        """Let the node submit a job."""
        definition = {
            "appName": "hello_world", "processorName": "hello_world_2",
            "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
            "parameters": [{"name": "name", "value": tag}],
        }  # fmt: skip
        body = {
            "serviceName": service,
            "jobDefinition": definition,
            "requiredResources": {**_SMALL, **resources},
        }
        job: dict[str, Any] = await self.call("POST", "jobs", body)
        return job

    async def done(self, service: str, tag: str) -> dict[str, Any]:
        """Let the node submit a job, and wait until it is done."""
        job = await self.submit(service, tag)
        with trio.fail_after(60):
            while job["status"] not in ("completed", "failed"):
                path = f"jobs/{job['requestId']}/wait?timeoutSec=10"
                job = await self.call("GET", path)
        assert job["status"] == "completed", job["error"]
        return job

    async def state(self) -> str:
        """Return a digest of the state that nobody may move: lists, jobs, and logs but those of
        members who may write."""
        parts = [await self._heights(), self._services(), self._jobs()]
        return json.dumps(parts, sort_keys=True)

    def _services(self) -> list[Any]:
        found = []
        for service in self.get("services")["services"]:
            if service["serviceId"] in self.aside:
                continue
            for member in service["members"]:
                member.pop("alive", None), member.pop("computes", None)
            found.append({k: service[k] for k in ("serviceId", "head", "epoch", "members", "apps")})
        return found

    def _jobs(self) -> list[Any]:
        """Return all jobs but those that rows made themselves and look after."""
        views = [
            job
            for job in self.get("jobs?limit=500")["jobs"]
            if job["requestId"] not in self._made and job["serviceId"] not in self.aside
        ]
        kept = ("requestId", "jobId", "status", "error", "canceled", "cached", "attempts")
        return sorted(([view[k] for k in (*kept, "outputFileResults")] for view in views), key=str)

    async def _heights(self) -> list[str]:
        """Ask, as the honest member, how far the node's logs are."""
        self.honest.heard.clear()
        self.honest.say(Digest(self.service, os.urandom(40), self.chain.digest))
        assert await self.honest.hears(
            lambda m: isinstance(m, Frontier) and m.service == self.service and not m.high
        ), "the node does not answer sync"
        theirs = {self.peers[name].key.peer for name in _WRITERS}
        heights: list[LogHeight] = [
            height
            for message in self.honest.heard
            if isinstance(message, Frontier) and message.service == self.service
            for height in message.logs
        ]
        me = self.node.info["peerId"]  # its own log grows by what it does for itself
        return sorted({f"{h.author}: {h.height}, {h.forked}" for h in heights
                       if h.author not in (*theirs, me)})  # fmt: skip

    async def serves_honest(self) -> bool:
        """Say whether the node stores what an honest member says, and says so."""
        record = Cancel((os.urandom(32).hex(),), 1)
        segment = self.honest.segment(
            self.service, self.epoch, record, boot=self._boot, seq=self._seq, prev=self._head
        )
        self._head, self._seq = segment.hash, self._seq + 1
        return await self.stores(self.honest, segment)

    async def stores(self, peer: Peer, segment: Segment) -> bool:
        """Say whether the node stores a peer's segment, and says so."""
        peer.push(segment, ack=True)
        answer = await peer.hears(lambda m: isinstance(m, Ack) and segment.hash in m.hashes)
        return answer is not None

    async def has_taken(self, peer: Peer, service: str = "") -> None:
        """Return when the node has done with everything that a peer has said so far: it answers
        what it is asked in order."""
        service, ticket = service or self.service, int.from_bytes(os.urandom(6))
        if service == self.service and self.chain.now.roles_of(peer.key.peer):
            peer.say(Lookup(service, ticket, ()))
            assert await peer.hears(lambda m: isinstance(m, LookedUp) and m.ticket == ticket, 20)
            peer.heard.clear()
            peer.say(Digest(service, os.urandom(40), self.chain.digest))  # the other channel
            assert await peer.hears(lambda m: isinstance(m, Frontier), 20), "no sync"
            return
        name = f"barrier {ticket}"
        peer.say(Follow(name, 0, ""))
        assert await peer.hears(lambda m: isinstance(m, Asked) and m.service == name, 20)

    # -- making it ----------------------------------------------------------------------------

    async def set_up(self) -> None:
        """Write the list, let the node take it up, install an app, run one job."""
        root = self.root.key
        me = self.node.info["peerId"]
        admins = [self.peers[n].key.peer for n in ("root", "second", "old")] + [me]
        roles = {
            "root": ["admin"], "second": ["admin"], "honest": ["submit"], "mallory": ["submit"],
            "cruncher": ["compute"], "reader": ["read"], "xavier": ["submit"], "yves": ["submit"],
        }  # fmt: skip
        adds = [_add(n, self.peers[n].key.peer, r) for n, r in roles.items()]
        node = _add("node", me, ["admin", "compute", "submit"])
        self.change(self.chain, root, _create("lab", admins), node, *adds)
        self.change(self.chain, root, {"op": "admins", "admins": [a for a in admins
                    if a != self.peers["old"].key.peer], "threshold": 1})  # fmt: skip
        self.change(self.chain, root, {"op": "remove", "member": "xavier"})
        self.change(self.chain, root, {"op": "remove", "member": "yves"})
        self.change(self.chain, root, _add("yves", self.peers["yves"].key.peer, ["submit"]))
        guest = _add("guest", self.peers["guest"].key.peer, ["submit"])
        self.change(self.other, root, _create("other", [root.peer]), node, guest,
                    _add("honest", self.peers["honest"].key.peer, ["submit"]))  # fmt: skip
        names = {"lab", "other"}
        assert await until(
            lambda: {s["serviceName"] for s in self.get("services")["services"]} == names, 30
        ), "the node does not take the services up"
        await self.call("POST", "services/lab/apps", {"source": "hello_world"})
        assert await self.honest.hears(
            lambda m: isinstance(m, Changes) and m.service == self.service, 30
        )
        assert await until(self._has_learnt, 30), "the node's own change is not told"
        self.job = await self.done("lab", "the job of the lab")

    async def restart(self, *names: str, meanwhile: Callable[[], object] = int) -> None:
        """Stop the node, do something, start it again on its home; the honest member and peers
        with these names are connected again."""
        home = self.node.home
        assert await trio.to_thread.run_sync(self.node.stop) == 0
        meanwhile()
        self.node = await trio.to_thread.run_sync(self._launch, home)
        await self.reconnect("honest", *names)
        assert await until(lambda: self.get("services")["services"]), "the disk was read"

    async def reconnect(self, *names: str) -> None:
        """Let peers go and come back, with new connections."""
        peers = [self.peers[name] for name in dict.fromkeys(names)]
        for peer in peers:
            peer.up = trio.Event()
            peer.again.set()
        with trio.fail_after(60):
            for peer in peers:
                while peer.again.is_set() or not peer.up.is_set():  # noqa: ASYNC110
                    await trio.sleep(0.01)  # house: waiting for another process

    def heads(self) -> dict[str, str]:
        """Return the head of each service of the node."""
        return {s["serviceId"]: s["head"] for s in self.get("services")["services"]}


def _create(name: str, admins: list[str]) -> dict[str, Any]:
    return {"op": "create", "name": name, "admins": admins, "threshold": 1,
            "nonce": os.urandom(8).hex()}  # fmt: skip


def _add(name: str, peer: str, roles: list[str]) -> dict[str, Any]:
    return {"op": "add", "member": name, "key": peer, "roles": roles}


@asynccontextmanager
async def laboratory(plants: tuple[str, ...] = ()) -> AsyncIterator[Lab]:
    """Run a laboratory, maybe with planted faults; nothing is left behind."""
    work = Path(tempfile.mkdtemp(prefix="pairio-attacks-"))
    lab: Lab | None = None
    try:
        home = work / "node"
        home.mkdir(mode=0o700)
        trusted = SigningKey(_SEEDS["root"]).peer
        relay = SigningKey(_SEEDS["visitor"]).peer
        (home / "node.toml").write_text(
            f'trust = ["{trusted}"]\nrelay = true\n'
            f'relays = ["/ip4/127.0.0.1/tcp/1/p2p/{relay}"]\n'  # it is not there: he comes himself
        )
        lab = made = await trio.to_thread.run_sync(Lab, home, work, plants)
        async with connected(list(lab.peers.values()), lambda: made.node):
            await lab.set_up()
            yield lab
    finally:
        if lab is not None and lab.node.process.poll() is None:
            lab.node.stop()
        shutil.rmtree(work, ignore_errors=True)
