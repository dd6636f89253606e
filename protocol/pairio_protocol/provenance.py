"""Where a result comes from: jobs, results, workers, inputs and code, as one graph; and the graph
as JSON, for graphviz, and as in-toto statements. Pure.

It says what signed records claim, and checks nothing: `verify.py` does, on the same evidence.
"""

import json
from collections.abc import Callable
from typing import Any

from pairio_protocol.cid import DAG_PB, parse_cid
from pairio_protocol.documents import decode
from pairio_protocol.evidence import Evidence
from pairio_protocol.export import results_in
from pairio_protocol.gather import bundle_of
from pairio_protocol.ids import request_id
from pairio_protocol.jobs import decode_job
from pairio_protocol.limits import CONTENT_BLOCK_SIZE_BYTES_MAX
from pairio_protocol.normalise import source_text
from pairio_protocol.records import Request, ResultDocument
from pairio_protocol.segment import Segment
from pairio_protocol.service import Chain

__all__ = ["as_dot", "as_statements", "trace"]

_BUILD_TYPE = "https://pairio.readthedocs.io/verify/#provenance"
#: What CIDs of files in several blocks hash: the block at their top, not the file.
_TOP_BLOCK = "ipfs-dag-pb-sha2-256"


def trace(evidence: Evidence, chain: Chain) -> dict[str, Any]:
    """Return the graph below a result, the result itself first in `results`."""
    found = results_in(evidence.segments)
    documents = {c: ResultDocument.decode(found[c]) for c, _ in evidence.asked if c in found}
    requests = _requests(evidence)
    asked = dict(evidence.asked)
    jobs = {cid: decode_job(data) for cid, data in evidence.documents.items()}
    results = [
        _result(cid, document, jobs.get(document.job), requests.get(asked[cid]), asked[cid])
        for cid, document in documents.items()
    ]
    workers = sorted({document.worker for document in documents.values()})
    return {
        "serviceId": evidence.service,
        "serviceName": chain.now.name,
        "resultCid": evidence.result,
        "results": results,
        "jobs": [_job(cid, job) for cid, job in jobs.items()],
        "code": _code(chain, jobs),
        "workers": [{"peerId": peer, "member": chain.now.member_of(peer)} for peer in workers],
        "content": _content(results),
    }


def _requests(evidence: Evidence) -> dict[str, tuple[str, Request]]:
    """Return (author, request) by id."""
    found = {}
    for segment in map(Segment.decode, evidence.segments):
        log = segment.log
        for number, record in enumerate(segment.records(), segment.first_seq):
            if isinstance(record, Request):
                name = request_id(segment.service, log.author, log.boot, number)
                found[name] = (log.author, record)
    return found


def _result(
    cid: str,
    document: ResultDocument,
    job: dict[str, Any] | None,
    request: tuple[str, Request] | None,
    request_name: str,
) -> dict[str, Any]:
    inputs = job["inputs"] if job is not None else []
    return {
        "resultCid": cid,
        "resolvedJobId": document.job,
        "runId": document.run,
        "requestId": request_name or None,
        "askedBy": request[0] if request is not None else None,
        "app": job["app"] if job is not None else None,
        "processor": job["processor"] if job is not None else None,
        "code": document.code,
        "status": document.status,
        "error": document.error or None,
        "worker": document.worker,
        "isolation": document.isolation,
        "startedUnixMs": document.started_unix_ms,
        "finishedUnixMs": document.finished_unix_ms,
        "usage": document.usage,
        "parameters": job["parameters"] if job is not None else [],
        "inputs": [{"name": e["name"], "source": source_text(e["source"])} for e in inputs],
        "outputs": [
            {"name": name, "cid": output, "size": size, "fileBaseName": base}
            for name, (output, size, base) in sorted(document.outputs.items())
        ],
        "console": document.console,
        "upstream": list(document.upstream),
    }


def _job(cid: str, job: dict[str, Any]) -> dict[str, Any]:
    sources = {e["name"]: source_text(e["source"]) for e in job["inputs"]}
    return {"jobId": cid, "app": job["app"], "processor": job["processor"], "inputs": sources}


def _code(chain: Chain, jobs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for job in jobs.values():
        known = bundle_of(chain, job)
        record = decode(known[1], CONTENT_BLOCK_SIZE_BYTES_MAX) if known is not None else {}
        usual = f"{job['app']}/{job['processor']}"
        known_as = found[job["code"]]["processors"] if job["code"] in found else []
        found[job["code"]] = {
            "code": job["code"],
            "processors": sorted({*known_as, usual}),
            "bundle": known[0] if known is not None else None,
            "executable": record.get("executable"),
            "image": record.get("container", {}).get("id") or record.get("image"),
            "imageArchive": record.get("container", {}).get("archive"),
        }
    return list(found.values())


def _content(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every input and output, with the results that made and used it."""
    found: dict[str, dict[str, Any]] = {}

    def entry(source: str) -> dict[str, Any]:
        return found.setdefault(source, {"source": source, "madeBy": [], "usedBy": []})

    for result in results:
        for used in result["inputs"]:
            entry(used["source"])["usedBy"].append(result["resultCid"])
        for made in result["outputs"]:
            entry(f"ipfs://{made['cid']}")["madeBy"].append(result["resultCid"])
    return list(found.values())


# -- for graphviz -----------------------------------------------------------------------------


def as_dot(graph: dict[str, Any]) -> str:
    """Return a graph in graphviz's language."""
    members = {w["peerId"]: w["member"] or w["peerId"][-10:] for w in graph["workers"]}
    lines = ["digraph provenance {", "  rankdir=LR;", '  node [fontname="sans-serif"];']
    for content in graph["content"]:
        label = content["source"]
        label = f"…{label[-10:]}" if label.startswith("ipfs://") else label[:60]
        lines.append(f"  {_quoted(content['source'])} [shape=note, label={_quoted(label)}];")
    for code in graph["code"]:
        label = "\n".join([*code["processors"], f"code …{code['code'][-10:]}"])
        lines.append(f"  {_quoted(code['code'])} [shape=component, label={_quoted(label)}];")
    for result in graph["results"]:
        cid = result["resultCid"]
        label = f"{result['app']}/{result['processor']}\n{result['status']} at"
        label += f" {members[result['worker']]}\nresult …{cid[-10:]}"
        lines.append(f"  {_quoted(cid)} [shape=box, label={_quoted(label)}];")
        lines.append(f"  {_quoted(result['code'])} -> {_quoted(cid)} [style=dashed];")
        for used in result["inputs"]:
            name = _quoted(used["name"])
            lines.append(f"  {_quoted(used['source'])} -> {_quoted(cid)} [label={name}];")
        for made in result["outputs"]:
            output, name = f"ipfs://{made['cid']}", _quoted(made["name"])
            lines.append(f"  {_quoted(cid)} -> {_quoted(output)} [label={name}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    """Return text as graphviz has it in quotes; others chose it."""
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


# -- in-toto ----------------------------------------------------------------------------------


def as_statements(graph: dict[str, Any], time_text: Callable[[int], str]) -> str:
    """Return an in-toto statement (v1, SLSA provenance v1) a line: the result's own first, then
    those of the results on which it rests. `time_text` gives a Unix time in ms as RFC 3339.
    """
    code = {one["code"]: one for one in graph["code"]}
    statements = [_statement(graph, result, code, time_text) for result in graph["results"]]
    return "".join(json.dumps(one, ensure_ascii=False, sort_keys=True) + "\n" for one in statements)


def _statement(
    graph: dict[str, Any],
    result: dict[str, Any],
    code: dict[str, dict[str, Any]],
    time_text: Callable[[int], str],
) -> dict[str, Any]:
    subjects = [_resource(o["name"], f"ipfs://{o['cid']}") for o in result["outputs"]]
    own = _resource("result", f"ipfs://{result['resultCid']}")
    rests_on = [_resource(f"input {i['name']}", i["source"]) for i in result["inputs"]]
    rests_on.append(_resource("job", f"ipfs://{result['resolvedJobId']}"))
    rests_on.append(_resource("code", f"ipfs://{result['code']}"))
    bundle = code.get(result["code"], {}).get("bundle")
    if bundle is not None:
        rests_on.append(_resource("code bundle", f"ipfs://{bundle}"))
    rests_on += [_resource("upstream result", f"ipfs://{cid}") for cid in result["upstream"]]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects or [own],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {
                    "app": result["app"],
                    "processor": result["processor"],
                    "parameters": {p["name"]: p["value"] for p in result["parameters"]},
                    "inputs": {i["name"]: i["source"] for i in result["inputs"]},
                },
                "internalParameters": {
                    "service": graph["serviceId"],
                    "isolation": result["isolation"],
                    "status": result["status"],
                    "requestedBy": result["askedBy"],
                },
                "resolvedDependencies": rests_on,
            },
            "runDetails": {
                "builder": {"id": f"pairio:{result['worker']}"},
                "metadata": {
                    "invocationId": result["runId"],
                    "startedOn": time_text(result["startedUnixMs"]),
                    "finishedOn": time_text(result["finishedUnixMs"]),
                },
                "byproducts": [own, _resource("console", f"ipfs://{result['console']}")],
            },
        },
    }


def _resource(name: str, uri: str) -> dict[str, Any]:
    """Return a resource descriptor; a URL has no digest."""
    if not uri.startswith("ipfs://"):
        return {"name": name, "uri": uri}
    parsed = parse_cid(uri.removeprefix("ipfs://").partition("/")[0])
    # A raw block is the file itself, and a document is hashed as it is.
    kind = _TOP_BLOCK if parsed.codec == DAG_PB else "sha256"
    return {"name": name, "uri": uri, "digest": {kind: parsed.digest.hex()}}
