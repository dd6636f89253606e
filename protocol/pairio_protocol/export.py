"""An export: evidence and content as blocks below one root, so that they travel in a CAR.

    root {type, v, service, result, job, parts}   dag-cbor; result and job are links
      +-- part {type, v, asked, changes, segments, forks, documents, contents}
            +-- changes, segments: raw blocks    documents: jobs    contents: files and folders

Whoever imports the file with `ipfs dag import` pins all of it by its root. The root proves nothing:
what it leads to is checked as evidence from anywhere (`verify.py`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pairio_protocol.cid import DAG_CBOR, RAW, CidError, cid_of, parse_cid
from pairio_protocol.documents import Link, decode, document_cid, encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.evidence import Block, Evidence
from pairio_protocol.limits import (
    CONTENT_BLOCK_SIZE_BYTES_MAX,
    EVIDENCE_RESULTS_MAX,
    EVIDENCE_SIZE_BYTES_MAX,
    EXPORT_PART_ENTRIES_MAX,
    EXPORT_PARTS_MAX,
)
from pairio_protocol.records import Result, ResultDocument, result_cid
from pairio_protocol.segment import Segment

__all__ = ["Export", "pack_export", "results_in", "unpack_export"]

_ROOT = {"type", "v", "service", "result", "job", "parts"}
_LISTS = ("asked", "changes", "segments", "forks", "documents", "contents")


@dataclass(frozen=True)
class Export:
    """What an export consists of: its root, the blocks that are only in it, and the CIDs below
    which its content lies."""

    root: str
    blocks: dict[str, bytes]
    contents: tuple[str, ...]


def results_in(segments: Iterable[bytes]) -> dict[str, bytes]:
    """Return the results that well-formed segments carry, by CID; their signatures unchecked."""
    found: dict[str, bytes] = {}
    for data in segments:
        try:
            records = Segment.decode(data).records()
        except DecodeError:
            continue
        documents = [record.document for record in records if isinstance(record, Result)]
        found.update((result_cid(document), document) for document in documents)
    return found


def pack_export(evidence: Evidence, records: Iterable[bytes], contents: Iterable[str]) -> Export:
    """Return evidence as an export.

    Args:
        records: processor records, for whoever reads the file with other tools.
        contents: CIDs of bundles, inputs, outputs and consoles.

    Raises:
        DecodeError: the result that is claimed is not in the segments.
    """
    results = results_in(evidence.segments)
    if evidence.result not in results:
        raise DecodeError(f"result {evidence.result} is not in the evidence")
    blocks: dict[str, bytes] = {}

    def put(codec: int, data: bytes) -> Link:
        cid = cid_of(codec, data)
        blocks[cid] = data
        return Link(cid)

    documents = [put(DAG_CBOR, d) for d in (*evidence.documents.values(), *records)]
    asked = [(cid, request) for cid, request in evidence.asked if cid in results]
    entries: list[tuple[str, Any]] = [
        *(("changes", put(RAW, change)) for change in evidence.changes),
        *(("segments", put(RAW, segment)) for segment in evidence.segments),
        *(("forks", [put(RAW, one), put(RAW, other)]) for one, other in evidence.forks),
        *(("documents", link) for link in documents),
        *(
            ("asked", {"result": put(DAG_CBOR, results[cid]), "request": request})
            for cid, request in asked
        ),
        *(("contents", Link(cid)) for cid in dict.fromkeys(contents)),
    ]
    parts = [put(DAG_CBOR, part) for part in _parts(entries)]
    job = ResultDocument.decode(results[evidence.result]).job
    root = encode(
        {
            "type": "pairio/export",
            "v": 1,
            "service": evidence.service,
            "result": Link(evidence.result),
            "job": Link(job),
            "parts": parts,
        }
    )
    # The root and its parts first: whoever reads the file from its beginning knows what comes.
    first = {document_cid(root): root, **{part.cid: blocks[part.cid] for part in parts}}
    return Export(document_cid(root), {**first, **blocks}, tuple(dict.fromkeys(contents)))


def _parts(entries: list[tuple[str, Any]]) -> Iterator[bytes]:
    for start in range(0, len(entries), EXPORT_PART_ENTRIES_MAX):
        part: dict[str, Any] = {"type": "pairio/export-part", "v": 1}
        part |= {name: [] for name in _LISTS}
        for name, entry in entries[start : start + EXPORT_PART_ENTRIES_MAX]:
            part[name].append(entry)
        yield encode(part)


def unpack_export(root: str, block: Block) -> tuple[Evidence, tuple[str, ...]]:
    """Return the evidence below a root, and the CIDs of its content.

    Raises:
        DecodeError: no export, a block of it is missing or wrong, or it is beyond the bounds.
    """
    reader = _Reader(block)
    plain = reader.document(root, "pairio/export", _ROOT)
    links = plain["parts"]
    if not isinstance(links, list) or len(links) > EXPORT_PARTS_MAX:
        raise DecodeError(f"an export has at most {EXPORT_PARTS_MAX} parts")
    found: dict[str, list[Any]] = {name: [] for name in _LISTS}
    for link in links:
        part = reader.document(_cid(link), "pairio/export-part", {"type", "v", *_LISTS})
        for name in _LISTS:
            if not isinstance(part[name], list):
                raise DecodeError(f"{name} of an export are no list")
            found[name] += part[name]
        if sum(len(part[name]) for name in _LISTS) > EXPORT_PART_ENTRIES_MAX:
            raise DecodeError(f"a part of an export of more than {EXPORT_PART_ENTRIES_MAX} entries")
    if len(found["asked"]) > EVIDENCE_RESULTS_MAX:
        raise DecodeError(f"an export of more than {EVIDENCE_RESULTS_MAX} results")
    result = _cid(plain["result"])
    asked = dict(map(_asked, found["asked"]))
    first = {result: asked.get(result, "")}
    evidence = Evidence(
        service=_text(plain["service"]),
        asked=tuple({**first, **asked}.items()),
        changes=tuple(reader.get(_cid(link)) for link in found["changes"]),
        segments=tuple(reader.get(_cid(link)) for link in found["segments"]),
        forks=tuple(reader.pair(pair) for pair in found["forks"]),
        documents=reader.jobs(found["documents"]),
    )
    return evidence, tuple(dict.fromkeys(map(_cid, found["contents"])))


class _Reader:
    """Reads an export's own blocks, bounded in all."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._left_bytes = EVIDENCE_SIZE_BYTES_MAX

    def get(self, cid: str) -> bytes:
        data = self._block(cid)
        if data is None:
            raise DecodeError(f"block {cid} of the export is missing")
        try:
            codec = parse_cid(cid).codec
        except CidError as error:
            raise DecodeError(str(error)) from None
        if cid_of(codec, data) != cid:
            raise DecodeError(f"block {cid} of the export holds other bytes")
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise DecodeError(f"an export of more than {EVIDENCE_SIZE_BYTES_MAX} bytes of records")
        return data

    def document(self, cid: str, kind: str, fields: set[str]) -> dict[str, Any]:
        plain = decode(self.get(cid), CONTENT_BLOCK_SIZE_BYTES_MAX)
        if set(plain) != fields or plain["type"] != kind or encode({"v": plain["v"]}) != _V1:
            raise DecodeError(f"{cid} is no {kind} of version 1")
        return plain

    def pair(self, plain: Any) -> tuple[bytes, bytes]:
        if not isinstance(plain, list) or len(plain) != 2:
            raise DecodeError("a fork in an export is not two segments")
        return self.get(_cid(plain[0])), self.get(_cid(plain[1]))

    def jobs(self, links: list[Any]) -> dict[str, bytes]:
        """Return the documents that are jobs; processor records stand beside them."""
        found = {cid: self.get(cid) for cid in map(_cid, links)}
        return {
            cid: data
            for cid, data in found.items()
            if decode(data, CONTENT_BLOCK_SIZE_BYTES_MAX).get("type") == "pairio/job"
        }


_V1 = encode({"v": 1})


def _asked(plain: Any) -> tuple[str, str]:
    if not isinstance(plain, dict) or set(plain) != {"result", "request"}:
        raise DecodeError("what was asked for is not {result, request}")
    return _cid(plain["result"]), _text(plain["request"])


def _cid(link: Any) -> str:
    if not isinstance(link, Link):
        raise DecodeError("an export names a block by something else than a link")
    return link.cid


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DecodeError("a text of an export is none")
    return value
