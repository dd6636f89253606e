"""A service, two jobs of which one rests on the other, and their results: all signed, all folded.

shout (text by CID) --output--> count --output--> 5
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pairio_protocol.apps import validate_app
from pairio_protocol.cid import DAG_PB, cid_of
from pairio_protocol.documents import encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.evidence import Evidence, resolved_with
from pairio_protocol.fold import ServiceFold
from pairio_protocol.gather import Held, gather
from pairio_protocol.ids import run_id
from pairio_protocol.normalise import job_id_of, normalise
from pairio_protocol.records import Record, Request, Resources, Result, ResultDocument, result_cid
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain
from pairio_protocol.signing import SigningKey
from pairio_protocol.unixfs import Entry, FileBuilder, directory_block
from pairio_protocol.verify import Check, verify

ALICE, BOB, EVE = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
NOW = 1_700_000_000_000
BIG = bytes(range(256)) * 5000  # two chunks


def processor(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "executable": "main.py",
        "inputs": [{"name": "text", "list": False}],
        "outputs": [{"name": "output"}],
        "parameters": [],
    }


@dataclass
class Lab:
    """Alice is the admin and submits, Bob computes."""

    chain: Chain = field(default_factory=Chain)
    blocks: dict[str, bytes] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    records: dict[bytes, list[Record]] = field(default_factory=dict)
    forks: list[tuple[Segment, Segment]] = field(default_factory=list)
    app: dict[str, Any] = field(default_factory=dict)

    def file(self, data: bytes) -> tuple[str, int, str]:
        builder = FileBuilder(self.blocks.__setitem__)
        for start in range(0, len(data), 1024 * 1024):
            builder.add_chunk(data[start : start + 1024 * 1024])
        root = builder.finish()
        return root.cid, root.size_bytes, "output"

    def begin(self) -> None:
        """Create the service and install the app."""
        main, *_ = self.file(b"#!/bin/sh\n")
        folder = directory_block([Entry(main, 10, 10, "main.py")])
        bundle = cid_of(DAG_PB, folder)
        self.blocks[bundle] = folder
        self.app = validate_app(
            {
                "name": "text",
                "bundle": bundle,
                "processors": [processor("shout"), processor("count")],
            }
        )
        roles = {ALICE: ["admin", "submit"], BOB: ["compute"]}
        ops = [
            {"op": "create", "name": "lab", "admins": [ALICE.peer], "threshold": 1, "nonce": "n"}
        ]
        ops += [
            {"op": "add", "member": name, "key": key.peer, "roles": roles[key]}
            for name, key in (("alice", ALICE), ("bob", BOB))
        ]
        self.change(*ops)
        self.change({"op": "app", "app": self.app})

    def change(self, *ops: dict[str, Any], **more: Any) -> None:
        self.chain.add(self.chain.propose(list(ops), [ALICE], NOW, **more))

    def write(
        self, key: SigningKey, records: list[Record], boot: int = 1, epoch: int | None = None
    ) -> Segment:
        """Append a segment to a log."""
        mine = [s for s in self.segments if (s.log.author, s.log.boot[0]) == (key.peer, boot)]
        at = mine[-1].last_seq + 1 if mine else 0
        prev = mine[-1].hash if mine else GENESIS
        epoch = self.chain.epoch if epoch is None else epoch
        made = Segment.seal(key, self.chain.service, bytes([boot]) * 16, at, epoch, prev, records)
        self.segments.append(made)
        return made

    def job(self, name: str, source: str) -> dict[str, Any]:
        return normalise(
            {
                "appName": "text",
                "processorName": name,
                "inputFiles": [{"name": "text", "url": source}],
                "outputFiles": [{"name": "output"}],
            },
            self.app,
        )

    def request(self, job: dict[str, Any], **changed: Any) -> Request:
        made = {
            "definition": encode(job),
            "mode": "use",
            "salt_of": "",
            "resources": Resources(1000, 1024, 0, 1000),
            "isolation_min": "",
            "tags": (),
            "batch": "",
            "priority": 0,
            "targets": (),
            "replicas": 1,
            "expires_unix_ms": NOW + 1000,
            "issued_unix_ms": NOW,
        }
        return Request(**{**made, **changed})

    def result(self, job: dict[str, Any], output: bytes, **changed: Any) -> bytes:
        """Return the signed document of Bob's result of a resolved job."""
        name = job_id_of(job)
        salt = changed.pop("salt", "")
        key = changed.pop("key", BOB)
        made: dict[str, Any] = {
            "service": self.chain.service,
            "job": name,
            "run": run_id(name, salt),
            "salt": salt,
            "attempt": f"{ALICE.peer}/{'01' * 8}/1",
            "status": "completed",
            "error": "",
            "outputs": {"output": self.file(output)},
            "console": self.file(b"said nothing\n")[0],
            "usage": {"cpu_ms": 1},
            "code": job["code"],
            "isolation": "bwrap",
            "upstream": (),
            "worker": key.peer,
            "started_unix_ms": NOW,
            "finished_unix_ms": NOW + 1,
        }
        return ResultDocument(**{**made, **changed}).sign(key)

    @property
    def fold(self) -> ServiceFold:
        """Everything, folded."""
        fold = ServiceFold(self.chain.service, self.chain.at, lambda _: True)
        for segment in self.segments:
            for seq, record in enumerate(segment.records(), segment.first_seq):
                with suppress(DecodeError):  # void
                    fold.add(segment.log, seq, segment.epoch, record, segment.hash)
        return fold

    def evidence(self, job: dict[str, Any]) -> Evidence:
        """Gather what the answer of a job rests on."""
        fold = self.fold
        state = fold.requests[fold.by_job[job_id_of(job)][0]]
        answer = fold.answer_for(state, fold.resolve(state.job))
        assert answer is not None
        by_hash = {segment.hash: segment for segment in self.segments}
        forks = {one.log: (one, other) for one, other in self.forks}
        return gather(Held(self.chain, fold, by_hash.get, forks.get), answer, state)


def two_jobs() -> tuple[Lab, dict[str, Any], Evidence]:
    """Return the laboratory, the second job, and the evidence for its result."""
    lab = Lab()
    lab.begin()
    text, _, _ = lab.file(b"abc")
    shout = lab.job("shout", text)
    count = lab.job("count", f"job:{job_id_of(shout)}/output")
    lab.write(ALICE, [lab.request(shout), lab.request(count)])
    shouted = lab.result(shout, BIG)
    lab.write(BOB, [Result(shouted)])
    made, _, _ = ResultDocument.decode(shouted).outputs["output"]
    _, resolved = resolved_with(count, [made])
    lab.write(BOB, [Result(lab.result(resolved, b"5", upstream=(result_cid(shouted),)))])
    return lab, count, lab.evidence(count)


def checks(evidence: Evidence, blocks: dict[str, bytes]) -> list[Check]:
    """Verify; return the checks."""
    return [c for c in verify(evidence, blocks.get) if isinstance(c, Check)]


def broken(found: Iterable[Check]) -> tuple[str, str]:
    """Return what broke, and the words."""
    last = list(found)[-1]
    assert not last.is_right, last
    assert last.hint
    return last.what, last.words
