"""Results that outlive their makers: got and verified by a node that was not there before, and
carried by file, through a real Kubo too."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pairio_protocol.car import CarReader, car_header, car_section
from pairio_protocol.export import pack_export, results_in, unpack_export
from pairio_protocol.records import Result, ResultDocument, result_cid
from pairio_protocol.segment import Segment
from pairio_protocol.signing import SigningKey
from tests.block_files import tamper
from tests.integration.conftest import RunningNode, StartNode
from tests.integration.kubo import StartKubo
from tests.integration.waiting import until

pytestmark = pytest.mark.integration
SERVICE = "lab"


def _done(node: RunningNode, *arguments: str) -> str:
    ran = node.cli(*arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _two_jobs(node: RunningNode) -> dict[str, Any]:
    """Run a job that rests on another; return it."""
    first = json.loads(_done(node, "submit", "hello_world/hello_world_2", "--wait", "--json"))
    source = f"input=job:{first['jobId']}/output"
    made = _done(node, "submit", "hello_world/count_characters", "-i", source, "--wait", "--json")
    job: dict[str, Any] = json.loads(made)
    assert job["status"] == "completed"
    return job


def _network(start_node: StartNode) -> tuple[RunningNode, RunningNode, dict[str, Any]]:
    """A node that submits, another that computes, and the second of two jobs."""
    first = start_node("first", "--no-compute")
    _done(first, "service", "create", SERVICE)
    _done(first, "app", "install", SERVICE, "hello_world")
    worker = start_node("worker")
    _done(worker, "join", _done(first, "service", "invite", SERVICE).split()[0], "--name", "bob")
    job = _two_jobs(first)
    assert job["computeNodeId"] == worker.info["peerId"]
    return first, worker, job


def test_a_result_outlives_the_node_that_computed_it(start_node: StartNode, tmp_path: Path) -> None:
    """The demo: the worker is killed after completion; a third node, which was not there before,
    gets the result by job id and verifies it."""
    first, worker, job = _network(start_node)
    assert job["safe"]
    worker.process.kill()
    worker.process.communicate(timeout=15)
    third = start_node("third", "--no-compute")
    link = _done(first, "service", "invite", SERVICE).split()[0]
    _done(third, "join", link, "--name", "carl")
    until("the job is known", lambda: third.cli("get", job["jobId"], "output").returncode == 0)
    target = tmp_path / "count.json"
    assert _done(third, "get", job["jobId"], "output", "-o", str(target)) == f"{target}\n"
    assert json.loads(target.read_text()) == {"count": 13}
    told = json.loads(_done(third, "verify", job["jobId"], "--json"))
    assert told["verified"]
    by = [c["by"][0]["member"] for c in told["checks"] if c["check"] == "result"]
    assert by == ["bob", "bob"]
    lines = _done(third, "job", "provenance", job["jobId"], "--format", "in-toto").splitlines()
    statement, _ = lines
    assert json.loads(statement)["_type"] == "https://in-toto.io/Statement/v1"
    output = job["outputFileResults"][0]["cid"]
    [found] = json.loads(_done(third, "job", "ls", "--output", output, "--json"))
    assert found["jobId"] == job["jobId"]
    # All of it is here now: nobody is needed any more.
    assert first.stop() == 0
    assert json.loads(_done(third, "verify", job["jobId"], "--offline", "--json"))["verified"]


def test_a_file_carries_a_result_to_a_node_and_to_anybody_else(
    start_node: StartNode, tmp_path: Path
) -> None:
    first, worker, job = _network(start_node)
    car, block = tmp_path / "result.car", job["outputFileResults"][0]["cid"]
    assert _done(first, "export", job["jobId"], "-o", str(car)) == f"{car}\n"
    assert worker.stop() == 0
    assert first.stop() == 0
    stranger = start_node("stranger")  # of no service: it has the content, and may verify
    assert "is not in service" in stranger.cli("import", str(car)).stderr
    assert json.loads(_done(stranger, "get", block, "-o", "-")) == {"count": 13}
    assert "verified  completed: 2 results" in _done(stranger, "verify", str(car))
    assert stranger.stop() == 0
    assert "verified  completed: 2 results" in _done(stranger, "verify", str(car))  # no node at all
    data = bytearray(car.read_bytes())
    data[len(data) // 2] ^= 1
    car.write_bytes(data)
    broken = stranger.cli("verify", str(car))
    assert broken.returncode == 1
    assert "the chain breaks at" in broken.stderr


def _forged(car: Path, part: str) -> str:
    """Forge a file as one who knows its form would: the names of blocks follow. Return where
    `verify` is to break."""
    reader = CarReader()
    blocks = {cid: data for cid, data, _ in reader.feed(car.read_bytes())}
    [root] = reader.finish()
    evidence, contents = unpack_export(root, blocks.get)
    segments, changes = list(evidence.segments), list(evidence.changes)
    breaks_at = {"block": "file", "change": "changes", "signature": "segments"}.get(part, part)
    number = next(n for n, data in enumerate(segments) if evidence.result in results_in([data]))
    if part == "block":
        output = ResultDocument.decode(results_in(segments)[evidence.result]).outputs["output"][0]
        blocks[output] = b'{"count": 14}'
    elif part == "change":
        changes[-1] = changes[-1][:-1] + bytes([changes[-1][-1] ^ 1])
    elif part == "signature":
        segments[number] = segments[number][:-1] + bytes([segments[number][-1] ^ 1])
    elif part == "result":  # another one, signed by one who is on no list
        segment = Segment.decode(segments[number])
        document = ResultDocument.decode(results_in(segments)[evidence.result])
        key, at = SigningKey(b"f" * 32), (segment.log.boot, segment.first_seq)
        forged = replace(document, worker=key.peer, usage={}).sign(key)
        made = Segment.seal(
            key, segment.service, *at, segment.epoch, segment.prev, [Result(forged)]
        )
        segments[number] = made.encode()
        asked = tuple((result_cid(forged), r) if c == evidence.result else (c, r)
                      for c, r in evidence.asked)  # fmt: skip
        evidence = replace(evidence, asked=asked)
    evidence = replace(evidence, segments=tuple(segments), changes=tuple(changes))
    export = pack_export(evidence, [], contents)
    blocks.update(export.blocks)
    sections = b"".join(car_section(cid, data) for cid, data in blocks.items())
    car.write_bytes(car_header(export.root) + sections)
    return breaks_at


def _flip_last_byte(database: Path, table: str) -> None:
    """Spoil the signature of every row."""
    with closing(sqlite3.connect(database)) as db:
        for key, data in db.execute(f"select rowid, data from {table}").fetchall():
            spoilt = data[:-1] + bytes([data[-1] ^ 1])
            db.execute(f"update {table} set data = ? where rowid = ?", (spoilt, key))
        db.commit()


def test_whatever_is_tampered_with_is_caught(start_node: StartNode, tmp_path: Path) -> None:
    """The end of the demo: a block, a result, a signature, a change."""
    first, worker, job = _network(start_node)
    car = tmp_path / "result.car"
    _done(first, "export", job["jobId"], "-o", str(car))
    assert "verified  completed: 2 results" in _done(first, "verify", str(car))
    for part in ("block", "result", "signature", "change"):
        wrong = tmp_path / f"{part}.car"
        wrong.write_bytes(car.read_bytes())
        breaks_at = _forged(wrong, part)
        said = first.cli("verify", str(wrong))
        assert said.returncode == 1, part
        assert f"the chain breaks at {breaks_at}:" in said.stderr, (part, said.stderr)
    for node in (worker, first):
        assert node.stop() == 0
    database = first.home / "node.db"  # on the disk of a node, too
    kept = database.read_bytes()
    _flip_last_byte(database, "segments")
    first = start_node("first", "--no-compute")
    said = first.cli("verify", job["jobId"], "--offline")
    assert said.returncode == 1
    assert "is not signed by" in said.stderr + said.stdout, said
    assert first.stop() == 0
    database.write_bytes(kept)
    _flip_last_byte(database, "changes")
    said = first.cli("run", "--listen", "/ip4/127.0.0.1/tcp/0", program="node_main")
    assert (said.returncode, said.stdout) == (1, "")
    assert "error: what node.db holds does not verify any more" in said.stderr
    assert "hint: the disk is damaged" in said.stderr
    assert "crash" not in said.stderr


def test_a_tampered_block_on_a_nodes_disk_is_caught(start_node: StartNode) -> None:
    first, worker, job = _network(start_node)
    cid = job["outputFileResults"][0]["cid"]
    for node in (first, worker):
        tamper(node.home, cid, b'{"count": 14}')
    broken = first.cli("verify", job["jobId"], "--offline")
    assert broken.returncode == 1
    assert f"the chain breaks at output: block {cid} holds other bytes" in broken.stderr


def test_kubo_reads_the_same_file(
    start_node: StartNode, start_kubo: StartKubo, tmp_path: Path
) -> None:
    first, _, job = _network(start_node)
    car = tmp_path / "result.car"
    _done(first, "export", job["jobId"], "-o", str(car))
    result = json.loads(_done(first, "verify", job["jobId"], "--json"))["resultCid"]
    kubo = start_kubo()
    imported = kubo.cli("dag", "import", "--stats", str(car)).stdout.decode()
    assert "Pinned root" in imported, imported
    root = next(word for word in imported.split() if word.startswith("bafyrei"))
    output = job["outputFileResults"][0]["cid"]
    found = json.loads(kubo.cli("dag", "get", f"{result}/outputs/output").stdout)
    assert found["cid"] == {"/": output}
    assert json.loads(kubo.cli("cat", output).stdout) == {"count": 13}
    assert json.loads(kubo.cli("dag", "get", f"{result}/job/processor").stdout) == (
        "count_characters"
    )
    # Kubo's own file of it is verified too: the blocks come in another order.
    again = tmp_path / "kubo.car"
    again.write_bytes(kubo.cli("dag", "export", root).stdout)
    assert "verified  completed: 2 results" in _done(first, "verify", str(again))
    assert "2 results count" in first.cli("import", str(again)).stderr
