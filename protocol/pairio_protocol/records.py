"""Records: signed, durable, replicated facts in a node's log (DESIGN section 6).

Each says who may write it. Whether one counts is decided in `machines/log.py`, `intake.py` and
`fold.py`; here is only what it looks like. `decode_record` makes these of what stands in a segment.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pairio_protocol.documents import Link, document_cid, encode
from pairio_protocol.documents import decode as decode_document
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import run_id
from pairio_protocol.limits import (
    CPU_MILLICORES_MAX,
    DECODED_MAX,
    DEFINITION_SIZE_BYTES_MAX,
    DEPTH_MAX,
    GPUS_MAX,
    MEMORY_MIB_MAX,
    NAME_LENGTH_MAX,
    RANGES_TOLD_MAX,
    SEGMENT_SIZE_BYTES_MAX,
    TAGS_MAX,
    TIME_MS_MAX,
)
from pairio_protocol.signing import SigningKey, signing_input, verify
from pairio_protocol.wire import Registry, UnknownKind

__all__ = [
    "ENDS",
    "ISOLATIONS",
    "MODES",
    "RECORDS",
    "Cancel",
    "End",
    "Record",
    "Request",
    "Resources",
    "Result",
    "ResultDocument",
    "SourceRead",
    "Start",
    "Unknown",
    "decode_record",
    "issued_unix_ms",
    "result_cid",
]

RECORDS = Registry()
#: What a result says of the limit that it failed by.
#: Among a result's outputs: what its run used over time, as JSON lines; no output of the app.
SAMPLES_OUTPUT = "resource_utilization_log/log.jsonl"
_LIMIT = re.compile(r"(?:time_ms|memory_mib)=[0-9]{1,19}", re.ASCII)
MODES = ("use", "skip_cache", "rerun_failing", "rerun_lost")
ENDS = ("infra", "yield", "canceled")
#: Weakest first.
ISOLATIONS = ("none", "medium", "strong")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use, at most; `time_ms` is the limit of its wall time."""

    cpu_millicores: int
    memory_mib: int
    gpus: int
    time_ms: int

    def __post_init__(self) -> None:
        """Refuse figures beyond the limits (ValueError)."""
        for value, low, high, name in (
            (self.cpu_millicores, 1, CPU_MILLICORES_MAX, "CPUs"),
            (self.memory_mib, 1, MEMORY_MIB_MAX, "memory"),
            (self.gpus, 0, GPUS_MAX, "GPUs"),
            (self.time_ms, 1, TIME_MS_MAX, "time"),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name}: {value} is not between {low} and {high}")


@RECORDS.wire("request")
@dataclass(frozen=True, slots=True)
class Request:
    """A member's wish to have a job done. Its author needs the role `submit`.

    `definition` is the job document; `salt_of` is the CID of the failed result in mode
    `rerun_failing`, and in mode `rerun_lost` of the completed result whose outputs nobody has whom
    the author could reach. `isolation_min` is one of ISOLATIONS, or empty: as the service's policy
    says. `issued_unix_ms` is for people. `sponsor_of` is the stranger, a peer id, in whose name a
    member asks in a public service; empty, and left out: the author asks for itself.
    """

    definition: bytes
    mode: str
    salt_of: str
    resources: Resources
    isolation_min: str
    tags: tuple[str, ...]
    batch: str
    priority: int
    targets: tuple[str, ...]
    replicas: int
    expires_unix_ms: int
    issued_unix_ms: int
    sponsor_of: str = ""

    def __post_init__(self) -> None:
        """Refuse what no rule allows (ValueError)."""
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}")
        if self.isolation_min and self.isolation_min not in ISOLATIONS:
            raise ValueError(f"isolation_min is {self.isolation_min!r}")
        if len(self.definition) > DEFINITION_SIZE_BYTES_MAX:
            raise ValueError("definition too large")
        if len(self.tags) > TAGS_MAX or len(self.targets) > TAGS_MAX:
            raise ValueError("too many tags or targets")


@RECORDS.wire("cancel")
@dataclass(frozen=True, slots=True)
class Cancel:
    """Withdraws requests: those of its author's member, or any for an admin."""

    requests: tuple[str, ...]
    issued_unix_ms: int


@RECORDS.wire("start")
@dataclass(frozen=True, slots=True)
class Start:
    """A worker has taken a run up. Its author needs the role `compute`. `attempt` is
    `coordinator/boot/counter`: it names who may end it besides the worker."""

    request: str
    run: str
    attempt: str
    upstream: tuple[str, ...]
    issued_unix_ms: int


@RECORDS.wire("end")
@dataclass(frozen=True, slots=True)
class End:
    """An attempt is over without a result: infra, yield or canceled."""

    request: str
    run: str
    attempt: str
    kind: str
    reason: str
    issued_unix_ms: int

    def __post_init__(self) -> None:
        """Refuse another kind of end (ValueError)."""
        if self.kind not in ENDS:
            raise ValueError(f"kind is {self.kind!r}")


@RECORDS.wire("result")
@dataclass(frozen=True, slots=True)
class Result:
    """A result document's bytes. No award is needed; its author needs the role `compute`."""

    document: bytes


Record = Request | Cancel | Start | End | Result


@dataclass(frozen=True, slots=True)
class Unknown:
    """A record of a kind that this version does not know: kept and passed on, never acted on."""

    plain: Any


def decode_record(plain: Any) -> Record | Unknown:
    """Return the record that `plain` is; DecodeError when one of a known kind is malformed."""
    try:
        record: Record = RECORDS.from_plain(plain)
    except UnknownKind:
        if _is_deeper(plain, DEPTH_MAX):
            raise DecodeError(f"a record nested deeper than {DEPTH_MAX} levels") from None
        return Unknown(plain)
    return record


def issued_unix_ms(record: Record | Unknown) -> int:
    """Return when a record was issued, by its author's clock; of an unknown kind 0.

    Raises:
        DecodeError: a result whose document is none.
    """
    match record:
        case Result():
            return ResultDocument.decode(record.document).finished_unix_ms
        case Unknown():
            return 0
    return record.issued_unix_ms


def _is_deeper(plain: Any, levels: int) -> bool:
    items = plain if isinstance(plain, list) else plain.values() if isinstance(plain, dict) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in items)


@dataclass(frozen=True, slots=True)
class SourceRead:
    """What a run read of an input by URL. `etag` and `modified` are the server's words, "" without
    any; `read_unix_ms` is when it was read first. `sha256` (hex) is of the whole content, "" when
    only `ranges` of it, [start, stop) in order, were read."""

    size_bytes: int
    etag: str
    modified: str
    read_unix_ms: int
    sha256: str
    ranges: tuple[tuple[int, int], ...] = ()

    def document(self) -> dict[str, Any]:
        """Return it as it stands in a result."""
        return {
            "size": self.size_bytes,
            "etag": self.etag,
            "modified": self.modified,
            "read": self.read_unix_ms,
            **({"sha256": self.sha256} if self.sha256 else {}),
            **({"ranges": [list(r) for r in self.ranges]} if self.ranges else {}),
        }

    @staticmethod
    def of(plain: dict[str, Any]) -> "SourceRead":
        """Return what stands in a result; DecodeError, or an error of its types."""
        ranges = tuple((start, stop) for start, stop in plain.get("ranges", ()))
        texts = (plain["etag"], plain["modified"], plain.get("sha256", ""))
        edges = [edge for pair in ranges for edge in pair]
        size, read = plain["size"], plain["read"]
        right = (
            all(isinstance(text, str) and len(text) <= NAME_LENGTH_MAX for text in texts)
            and all(type(n) is int and 0 <= n < 2**63 for n in (size, read, *edges))
            and len(ranges) <= RANGES_TOLD_MAX
            and edges == sorted(set(edges))
            and edges[-1:] <= [size]
        )
        if not right:
            raise DecodeError("what was read by URL is not told as it should be")
        return SourceRead(size, texts[0], texts[1], read, texts[2], ranges)


@dataclass(frozen=True, slots=True)
class ResultDocument:
    """What a worker signs: a resolved job, how it ended, and where the outputs are.

    `run` follows from the resolved job and the salt. `outputs` maps a declared (or additional,
    `other/...`) name to (CID, size in bytes, base name); `sources` an input by URL to what was read
    of it, and is left out when there is none.
    """

    service: str
    job: str
    run: str
    salt: str
    attempt: str
    status: str
    error: str
    outputs: dict[str, tuple[str, int, str]]
    console: str
    usage: dict[str, int]
    code: str
    isolation: str
    upstream: tuple[str, ...]
    worker: str
    started_unix_ms: int
    finished_unix_ms: int
    limit: str = ""
    sources: dict[str, SourceRead] = field(default_factory=dict)

    def _body(self) -> dict[str, Any]:
        return {
            "type": "pairio/result",
            "v": 1,
            "service": self.service,
            "job": Link(self.job),
            "run": self.run,
            "salt": self.salt,
            "attempt": self.attempt,
            "status": self.status,
            "error": self.error,
            "outputs": {
                name: {"cid": Link(cid), "size": size, "base_name": base}
                for name, (cid, size, base) in self.outputs.items()
            },
            "console": Link(self.console),
            "usage": self.usage,
            "code": self.code,
            "isolation": self.isolation,
            "upstream": list(self.upstream),
            "worker": self.worker,
            "started": self.started_unix_ms,
            "finished": self.finished_unix_ms,
            "limit": self.limit,
            **({"sources": self._told_sources()} if self.sources else {}),
        }

    def _told_sources(self) -> dict[str, Any]:
        return {name: source.document() for name, source in self.sources.items()}

    def _is_well_typed(self) -> bool:
        texts = (
            *(self.service, self.run, self.salt, self.attempt, self.error, self.code),
            *(self.isolation, self.worker, self.limit, *self.upstream),
            *(base for _, _, base in self.outputs.values()),
        )
        figures = (
            *(self.started_unix_ms, self.finished_unix_ms, *self.usage.values()),
            *(size for _, size, _ in self.outputs.values()),
        )
        return (
            self.status in ("completed", "failed")
            and all(isinstance(text, str) for text in texts)
            and all(0 <= figure < 2**63 for figure in figures)
            and (not self.limit or _LIMIT.fullmatch(self.limit) is not None)
        )

    def sign(self, key: SigningKey) -> bytes:
        """Return the bytes of the signed document (DAG-CBOR, signature as hex)."""
        body = self._body()
        signature = key.sign(signing_input("result", encode(body)))
        return encode({**body, "signature": signature.hex()})

    @staticmethod
    @lru_cache(maxsize=DECODED_MAX)
    def decode(data: bytes) -> "ResultDocument":
        """Return the document in `data` after checking its signature.

        Raises:
            DecodeError: not a result, or not signed by the worker it names.
        """
        plain = decode_document(data, SEGMENT_SIZE_BYTES_MAX)
        try:
            signature = bytes.fromhex(plain["signature"])
            if plain.pop("signature") != signature.hex():
                raise DecodeError("a signature that is not lower-case hex")
            if plain["type"] != "pairio/result" or plain["v"] != 1:
                raise DecodeError("not a result of version 1")
            document = ResultDocument(
                service=plain["service"],
                job=plain["job"].cid,
                run=plain["run"],
                salt=plain["salt"],
                attempt=plain["attempt"],
                status=plain["status"],
                error=plain["error"],
                outputs={
                    name: (o["cid"].cid, int(o["size"]), o["base_name"])
                    for name, o in plain["outputs"].items()
                },
                console=plain["console"].cid,
                usage={str(k): int(v) for k, v in plain["usage"].items()},
                code=plain["code"],
                isolation=plain["isolation"],
                upstream=tuple(plain["upstream"]),
                worker=plain["worker"],
                started_unix_ms=int(plain["started"]),
                finished_unix_ms=int(plain["finished"]),
                limit=plain["limit"],
                sources={k: SourceRead.of(v) for k, v in plain.get("sources", {}).items()},
            )
            body = document._body()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DecodeError(f"not a result document: {error!r}") from None
        if body != plain or not document._is_well_typed():
            raise DecodeError("not a result document")
        if document.run != run_id(document.job, document.salt):
            raise DecodeError("a result whose run is not that of its job")
        if not verify(document.worker, signing_input("result", encode(body)), signature):
            raise DecodeError("a result that its worker did not sign")
        return document


def result_cid(data: bytes) -> str:
    """Return the CID of a signed result document."""
    return document_cid(data)
