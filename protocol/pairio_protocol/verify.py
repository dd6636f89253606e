"""Verifying a result: from its bytes and public keys alone, without a node.

    change log --> for every result on which the claimed one rests, those first, and then for it:
                   request, result, code, inputs, upstream results, outputs

The first thing that is wrong, or missing, is a break: nothing behind it is looked at. What the
evidence holds beyond what is needed is checked too where it could have been meant to count.

`verify` yields a `Check` for each step, and `Progress` now and then while blocks are hashed, so
that whoever shows it can say that it goes on.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from pairio_protocol.allowlist import Folded
from pairio_protocol.apps import code_of
from pairio_protocol.cid import DAG_CBOR, CidError, cid_of, parse_cid
from pairio_protocol.errors import DecodeError
from pairio_protocol.evidence import Answers, Block, Evidence
from pairio_protocol.history import read_history
from pairio_protocol.ids import LogId, request_id
from pairio_protocol.jobs import decode_job
from pairio_protocol.limits import CONTENT_BLOCKS_MAX
from pairio_protocol.machines.log import forked_seq, why_not_alone
from pairio_protocol.normalise import is_normal
from pairio_protocol.open_submit import why_not_sponsored
from pairio_protocol.records import Request, Result, ResultDocument, result_cid
from pairio_protocol.segment import Segment
from pairio_protocol.service import Chain
from pairio_protocol.unixfs import Node, UnixfsError, parse_node

__all__ = ["Check", "Progress", "verify"]

#: Blocks between two signs of life.
_PROGRESS_BLOCKS = 64
_FETCH_HINT = "start the node and run it again without --offline, or import an export of the job"
_TAMPERED_HINT = "get it from somebody else: pairio export there, pairio import here"


@dataclass(frozen=True)
class Check:
    """One step. `by` are the keys that vouch for it, each with the member it belonged to then.
    `is_proved` is false where something is named that nobody can check: a URL, an image."""

    what: str
    is_right: bool
    words: str
    by: tuple[tuple[str, str], ...] = ()
    job: str = ""
    result: str = ""
    hint: str = ""
    is_proved: bool = True

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "check": self.what,
            "ok": self.is_right,
            "proved": self.is_right and self.is_proved,
            "words": self.words,
            "by": [{"peerId": peer, "member": member} for peer, member in self.by],
            "jobId": self.job or None,
            "resultCid": self.result or None,
            "hint": self.hint or None,
        }


@dataclass(frozen=True)
class Progress:
    """How many blocks and bytes were hashed so far."""

    blocks: int
    size_bytes: int


Steps = Generator[Check | Progress, None, None]


class _Break(Exception):
    def __init__(self, words: str, hint: str = _TAMPERED_HINT) -> None:
        super().__init__(words)
        self.words = words
        self.hint = hint


def verify(evidence: Evidence, block: Block) -> Iterator[Check | Progress]:
    """Check a result and all on which it rests; the last `Check` is right only if all are.

    Args:
        block: gives the bytes of content, processor records and the like; they are hashed here.
    """
    checker = _Checker(evidence, block)
    try:
        yield from checker.run()
    except _Break as found:
        what, job, result = checker.at
        yield Check(what, False, found.words, job=job, result=result, hint=found.hint)


class _Checker:
    """One verification. `at` says what is being looked at: (check, job, result)."""

    def __init__(self, evidence: Evidence, block: Block) -> None:
        self._evidence = evidence
        self._given = block
        self._chain = Chain()
        self._requests: dict[str, tuple[Segment, Request]] = {}
        self._results: dict[str, tuple[Segment, ResultDocument]] = {}
        self._forks: dict[LogId, int] = {}
        self._asked = dict(evidence.asked)
        self._walked: dict[str, tuple[int, int]] = {}  # blocks, size in bytes
        self._hashed = Progress(0, 0)
        self.at = ("changes", "", "")

    def run(self) -> Steps:
        """All checks, in their order."""
        yield self._check_changes()
        self.at = ("segments", "", "")
        self._read_segments()
        self._read_forks()
        self.at = ("request", "", self._evidence.result)
        self._answers = Answers(self._read_jobs(), {c: d for c, (_, d) in self._results.items()})
        done: set[str] = set()
        for cid in self._in_order():
            yield from self._check_one(cid, done)
            done.add(cid)
        document = self._results[self._evidence.result][1]
        words = f"{document.status}: {len(done)} results, {self._hashed.blocks} blocks hashed"
        yield Check("verified", True, words, job=document.job, result=self._evidence.result)

    # -- what signatures say ----------------------------------------------------------------

    def _check_changes(self) -> Check:
        service = self._evidence.service
        try:
            self._chain = read_history(self._evidence.changes)
        except DecodeError as error:
            hint = _TAMPERED_HINT if self._evidence.changes else _FETCH_HINT
            raise _Break(f"the change log of the service: {error}", hint) from None
        chain = self._chain
        if chain.service != service:
            raise _Break(f"the change log is that of service {chain.service}, not {service}")
        count, lost = len(self._evidence.changes), len(chain.losing_heads())
        words = f"{count} changes of {chain.now.name!r} ({service}), newest {chain.epoch}"
        if lost:
            words += f"; {lost} branches lost"
        newest = next(t for t in reversed(chain.story()) if t.change.cid == chain.head)
        before = newest.before or chain.now
        return Check("changes", True, words, tuple((p, _member(before, p)) for p in newest.signers))

    def _read_segments(self) -> None:
        for data in self._evidence.segments:
            segment = self._segment(data)
            try:
                records = segment.records()
            except DecodeError:
                continue  # signed, and yet malformed: void
            log = segment.log
            for number, record in enumerate(records, segment.first_seq):
                if isinstance(record, Request):
                    name = request_id(segment.service, log.author, log.boot, number)
                    self._requests[name] = (segment, record)
                elif isinstance(record, Result):
                    self._read_result(segment, record)

    def _read_result(self, segment: Segment, record: Result) -> None:
        cid = result_cid(record.document)
        try:
            document = ResultDocument.decode(record.document)
        except DecodeError as error:
            if cid in self._asked:
                self.at = ("result", "", cid)
                raise _Break(str(error)) from None
            return
        if document.worker == segment.log.author or cid not in self._results:
            self._results[cid] = (segment, document)

    def _segment(self, data: bytes) -> Segment:
        try:
            segment = Segment.decode(data)
        except DecodeError as error:
            raise _Break(f"a segment: {error}") from None
        if segment.service != self._evidence.service:
            raise _Break(f"a segment is of another service, {segment.service[:80]}")
        if not segment.is_signed():
            raise _Break(f"a segment is not signed by {segment.log.author[:80]}, who it says")
        return segment

    def _read_forks(self) -> None:
        for pair in self._evidence.forks:
            one, other = map(self._segment, pair)
            at = forked_seq(one, other)
            if at is None:
                raise _Break("two segments are said to contradict each other and do not")
            self._forks[one.log] = min(at, self._forks.get(one.log, at))

    def _read_jobs(self) -> dict[str, bytes]:
        jobs = {}
        for cid in self._evidence.documents:
            data = self._block(cid)
            try:
                decode_job(data)
            except DecodeError as error:
                raise _Break(f"{cid} is no job definition: {error}") from None
            jobs[cid] = data
        return jobs

    def _in_order(self) -> list[str]:
        """Return the results to check: those on which others rest before these."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        left = [self._evidence.result]
        while left:
            cid = left[-1]
            rests_on = [] if cid in seen else self._rests_on(cid)
            seen.add(cid)
            new = [one for one in rests_on if one not in seen]
            if new:
                left += new
            else:
                found[left.pop()] = None
        return list(found)

    def _rests_on(self, cid: str) -> list[str]:
        self.at = ("result", "", cid)
        if cid not in self._results:
            raise _Break(f"result {cid} is not here, nor the segment that carries it", _FETCH_HINT)
        document = self._results[cid][1]
        used = self._answers.of(self._definition(cid)).get(cid, ())
        return list(dict.fromkeys([*document.upstream, *used]))

    def _definition(self, cid: str) -> str:
        """Return the id of the job, as it was asked for, that a result is to answer."""
        request = self._requests.get(self._asked.get(cid, ""))
        return cid_of(DAG_CBOR, request[1].definition) if request is not None else ""

    # -- one result ---------------------------------------------------------------------------

    def _check_one(self, cid: str, done: set[str]) -> Steps:
        document = self._results[cid][1]
        job = document.job
        self.at = ("request", job, cid)
        yield self._check_request(cid)
        self.at = ("result", job, cid)
        yield self._check_result(cid)
        self.at = ("code", job, cid)
        yield from self._check_code(cid)
        yield from self._check_inputs(cid)
        if document.upstream:
            self.at = ("upstream", job, cid)
            yield self._check_upstream(cid, done)
        for name, (output, size, _) in sorted(document.outputs.items()):
            self.at = ("output", job, cid)
            yield from self._check_content(f"output {name!r}", output, size)
        self.at = ("console", job, cid)
        yield from self._check_content("console", document.console, None)

    def _right(
        self, words: str, by: tuple[tuple[str, str], ...] = (), proved: bool = True
    ) -> Check:
        what, job, result = self.at
        return Check(what, True, words, by, job, result, is_proved=proved)

    def _check_request(self, cid: str) -> Check:
        name = self._asked.get(cid, "")
        if name not in self._requests:
            raise _Break(f"the request {name or 'that it answers'} is not here", _FETCH_HINT)
        segment, record = self._requests[name]
        folded = self._counted(segment, "submit")
        try:
            job = decode_job(record.definition)
        except DecodeError as error:
            raise _Break(f"request {name}: {error}") from None
        why_not = why_not_sponsored(record, job, folded) if record.sponsor_of else ""
        if why_not:
            raise _Break(f"request {name}: {why_not}")
        asked = self._definition(cid)
        if cid not in self._answers.of(asked):
            raise _Break(f"result {cid} is not one of job {asked}, which was asked for")
        document = self._results[cid][1]
        own = {"skip_cache": name, "rerun_failing": record.salt_of}.get(record.mode)
        is_any = own is None or (record.mode != "skip_cache" and document.status == "completed")
        if not is_any and document.salt != own:
            raise _Break(f"request {name} asked for a run of its own, which this is not")
        for_whom = f" for guest {record.sponsor_of}" if record.sponsor_of else ""
        author = segment.log.author
        words = f"job {asked} of {job['app']}/{job['processor']}{for_whom}, at change"
        return self._right(f"{words} {segment.epoch}", ((author, _member(folded, author)),))

    def _counted(self, segment: Segment, role: str) -> Folded:
        """Return the list under which a segment was written, in which its author has the role."""
        why_not = why_not_alone(segment, self._chain, self._forks.get(segment.log))
        if why_not:
            raise _Break(f"a segment of {segment.log.author} does not count: {why_not}")
        folded = self._chain.at(segment.epoch)
        assert folded is not None
        if role not in folded.roles_of(segment.log.author):
            raise _Break(f"{segment.log.author} had no role {role!r} at change {segment.epoch}")
        return folded

    def _check_result(self, cid: str) -> Check:
        segment, document = self._results[cid]
        worker = segment.log.author
        if document.worker != worker:
            raise _Break(f"it names worker {document.worker}, and lies in a log of {worker}")
        if document.service != self._evidence.service:
            raise _Break(f"it is a result of service {document.service}")
        folded = self._counted(segment, "compute")
        declared = {output["name"] for output in self._job(cid)["outputs"]}
        lacking = sorted(declared - set(document.outputs))
        if document.status == "completed" and lacking:
            raise _Break(f"it is completed and has no output {lacking[0]!r}")
        said = f"{document.status} under {document.isolation}, at change {segment.epoch}: {cid}"
        if any("job" in entry["source"] for entry in self._job(cid)["inputs"]):
            raise _Break("its job names outputs of jobs, not what they were")
        return self._right(said, ((worker, _member(folded, worker)),))

    def _job(self, cid: str) -> dict[str, Any]:
        """Return the resolved job of a result."""
        job = self._results[cid][1].job
        data = self._block(job)
        try:
            return decode_job(data)
        except DecodeError as error:
            raise _Break(f"job {job}: {error}") from None

    def _check_code(self, cid: str) -> Steps:
        job, document = self._job(cid), self._results[cid][1]
        if document.code != job["code"]:
            raise _Break(f"the result is of code {document.code}, its job of {job['code']}")
        request = self._requests[self._asked[cid]]
        definition = decode_job(request[1].definition)
        for epoch in (request[0].epoch, self._results[cid][0].epoch):
            folded = self._chain.at(epoch)
            app = folded.apps.get(job["app"]) if folded is not None else None
            processors = app["processors"] if app is not None else []
            fitting = [p for p in processors if p["name"] == job["processor"]]
            if app is not None and fitting and code_of(app, fitting[0]) == job["code"]:
                break
        else:
            raise _Break(f"code {job['code']} of {job['app']!r} was not on the list at that change")
        if not is_normal(definition, app):
            raise _Break(f"the definition is not what app {job['app']!r} makes of it")
        image = fitting[0]["image"]
        if image and "container" not in fitting[0]:
            yield self._right(f"image {image!r}: named, its content not checked", proved=False)
        about = f"{job['app']}/{job['processor']} on the list at change {epoch}, {job['code']}"
        yield from self._check_content(f"{about}; bundle", app["bundle"], None)
        if container := fitting[0].get("container"):
            # Often gigabytes, and a node that runs the app checks them by itself.
            words = f"image {container['id']} in {container['archive']}: named by its hash,"
            yield self._right(f"{words} its content not fetched", proved=False)

    def _check_inputs(self, cid: str) -> Steps:
        for entry in self._job(cid)["inputs"]:
            self.at = ("input", self._results[cid][1].job, cid)
            source = entry["source"]
            if "cid" in source:
                yield from self._check_content(f"input {entry['name']!r}", source["cid"], None)
            else:
                words = f"input {entry['name']!r} by URL {source['url']}: what it was is not known"
                yield self._right(words, proved=False)

    def _check_upstream(self, cid: str, done: set[str]) -> Check:
        upstream = self._results[cid][1].upstream
        inputs = {entry["source"].get("cid") for entry in self._job(cid)["inputs"]}
        for one in upstream:
            if one not in done:
                raise _Break(f"upstream result {one} was not verified before", _FETCH_HINT)
            made = {output for output, _, _ in self._results[one][1].outputs.values()}
            if not made & inputs:
                raise _Break(f"upstream result {one} gave none of the inputs")
        return self._right(f"{len(upstream)} results, each verified above, gave its inputs")

    # -- content ------------------------------------------------------------------------------

    def _block(self, cid: str) -> bytes:
        data = self._evidence.documents.get(cid)
        if data is None:
            data = self._given(cid)
        if data is None:
            raise _Break(f"block {cid} is not here", _FETCH_HINT)
        try:
            codec = parse_cid(cid).codec
        except CidError as error:
            raise _Break(str(error)) from None
        if cid_of(codec, data) != cid:
            raise _Break(f"block {cid} holds other bytes")
        return data

    def _check_content(self, about: str, cid: str, size_bytes: int | None) -> Steps:
        """Hash every block below a CID; `size_bytes` is what the result says it has."""
        if cid not in self._walked:
            yield from self._walk(cid)
        blocks, size = self._walked[cid]
        if size_bytes is not None and size != size_bytes:
            raise _Break(f"{about} has {size} bytes, and the result says {size_bytes}")
        yield self._right(f"{about} {cid}: {size} bytes in {blocks} blocks")

    def _walk(self, root: str) -> Steps:
        sizes: dict[str, int] = {}
        left: list[tuple[str, Node | None]] = [(root, None)]
        while left:
            cid, node = left.pop()
            if cid in sizes:
                continue
            if node is None:
                node, length = self._node(cid)
                self._hashed = Progress(self._hashed.blocks + 1, self._hashed.size_bytes + length)
                if self._hashed.blocks % _PROGRESS_BLOCKS == 0:
                    yield self._hashed
                new = [entry.cid for entry in node.entries if entry.cid not in sizes]
                if len(sizes) + len(left) + len(new) > CONTENT_BLOCKS_MAX:
                    raise _Break(f"{root} has more than {CONTENT_BLOCKS_MAX} blocks")
                if new:
                    left.append((cid, node))
                    left += [(one, None) for one in new]
                    continue
            sizes[cid] = _size(cid, node, sizes)
        self._walked[root] = (len(sizes), sizes[root])

    def _node(self, cid: str) -> tuple[Node, int]:
        data = self._block(cid)
        if parse_cid(cid).codec == DAG_CBOR:
            raise _Break(f"{cid} is no file or folder")
        try:
            return parse_node(cid, data), len(data)
        except UnixfsError as error:
            raise _Break(str(error)) from None


def _size(cid: str, node: Node, sizes: dict[str, int]) -> int:
    """Return the bytes of a file or folder, from those of what is in it."""
    size = len(node.data) + sum(sizes[entry.cid] for entry in node.entries)
    if not node.is_directory:
        wrong = any(sizes[entry.cid] != entry.size_bytes for entry in node.entries)
        if wrong or size != node.size_bytes:
            raise _Break(f"file {cid} says another size than its parts have")
    return size


def _member(folded: Folded, peer: str) -> str:
    return folded.member_of(peer) or ""
