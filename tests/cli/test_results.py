"""`get`, `verify`, `export` and `import` against a fake node, and with files alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairio_protocol.car import car_header, car_section
from pairio_protocol.cid import DAG_PB, cid_of
from pairio_protocol.export import pack_export
from pairio_protocol.shards import folder_of
from pairio_protocol.unixfs import Entry, FileBuilder, directory_block
from tests.cli.conftest import Ran, Run
from tests.protocol.evidence_lab import two_jobs
from tests.protocol.test_shards import chain
from tests.sdk.fake_node import JOB_ID, Asked, FakeNode, Raw

BIG = bytes(range(256)) * 10_000


class Content:
    """Blocks and files that the fake node gives, by range too."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.cut: int | None = None

    def block(self, cid: str, data: bytes) -> None:
        self._node.on("GET", f"/blocks/{cid}", Raw(data))

    def file(self, data: bytes) -> str:
        builder = FileBuilder(self.block)
        for start in range(0, len(data) or 1, 1024 * 1024):
            builder.add_chunk(data[start : start + 1024 * 1024])
        cid = builder.finish().cid
        self._node.on("GET", f"/content/{cid}", self._answer(data))
        return cid

    def _answer(self, data: bytes) -> Callable[[Asked], Raw]:
        def answer(asked: Asked) -> Raw:
            start = int(asked.range.removeprefix("bytes=").rstrip("-") or 0)
            return Raw(data[start:], 206 if asked.range else 200, self.cut)

        return answer

    def folder(self, **files: bytes) -> str:
        entries = [Entry(self.file(d), len(d), len(d), name) for name, d in files.items()]
        block = directory_block(entries)
        cid = cid_of(DAG_PB, block)
        self.block(cid, block)
        return cid

    def job(self, **outputs: str) -> None:
        """Let the job have these outputs."""
        made = [
            {"name": name, "cid": cid, "size": 1, "fileBaseName": f"{name}.bin"}
            for name, cid in outputs.items()
        ]
        result = {"jobId": JOB_ID, "status": "completed", "error": None, "outputs": made}
        self._node.on("GET", f"/results/{JOB_ID}", result)


@pytest.fixture
def content(node: FakeNode) -> Content:
    return Content(node)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


# -- get ---------------------------------------------------------------------------------------


def test_all_outputs_go_into_files_named_as_the_job_names_them(content: Content, run: Run) -> None:
    content.job(one=content.file(b"1"), two=content.file(BIG))
    got = run("get", JOB_ID)
    assert (got.code, got.out) == (0, "one.bin\ntwo.bin\n")
    assert (Path("one.bin").read_bytes(), Path("two.bin").read_bytes()) == (b"1", BIG)
    assert run("get", JOB_ID, "-o", "all").out == "all/one.bin\nall/two.bin\n"
    assert Path("all/two.bin").read_bytes() == BIG


def test_bytes_go_to_stdout_where_a_script_asks_for_one_output(content: Content, run: Run) -> None:
    content.job(one=content.file(b"abc"))
    assert run("get", JOB_ID, "one").out == "abc"
    assert run("get", JOB_ID, "-o", "-").out == "abc"
    assert list(Path().iterdir()) == []


def test_content_is_had_by_its_cid(content: Content, run: Run) -> None:
    cid = content.file(BIG)
    assert run("get", cid, "-o", "x").out == "x\n"
    assert Path("x").read_bytes() == BIG
    assert run("get", cid).out == f"{cid}\n"


def test_a_folder_comes_whole(content: Content, run: Run) -> None:
    content.job(out=content.folder(a=b"A", b=BIG, empty=b""))
    assert run("get", JOB_ID, "out").out == "out.bin\n"
    assert {p.name: p.read_bytes() for p in Path("out.bin").iterdir()} == {
        "a": b"A", "b": BIG, "empty": b"",
    }  # fmt: skip


def test_a_folder_in_shards_comes_whole(
    content: Content, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio_protocol.shards.DIRECTORY_SIZE_BYTES_MAX", 0)
    names = [f"{i}" for i in range(300)]
    entries = [Entry(content.file(n.encode()), len(n), len(n), n) for n in names]
    content.job(out=folder_of(entries, content.block).cid)
    assert run("get", JOB_ID, "out").out == "out.bin\n"
    assert {p.name: p.read_text() for p in Path("out.bin").iterdir()} == {n: n for n in names}


def test_a_folder_whose_shards_are_none_is_refused(content: Content, run: Run) -> None:
    root, blocks = chain("a", 1, Entry(content.file(b"x"), 0, 0))
    for cid, block in blocks.items():
        content.block(cid, block)
    got = run("get", root, "-o", "x")
    assert (got.code, "no shard of it" in got.err) == (1, True)


@pytest.mark.parametrize("name", ["..", "a/b", "", "."])
def test_nothing_is_written_outside(name: str, content: Content, run: Run) -> None:
    block = directory_block([Entry(content.file(b"evil"), 4, 4, name)])
    cid = cid_of(DAG_PB, block)
    content.block(cid, block)
    got = run("get", cid, "-o", "x")
    assert (got.code, "is no name for a file" in got.err) == (1, True)
    assert [p.name for p in Path().rglob("*")] == ["x"]


def test_a_name_that_would_do_things_to_a_terminal_is_not_used(content: Content, run: Run) -> None:
    content.job(**{"\x1b[2J": content.file(b"abc")})
    got = run("get", JOB_ID)
    assert (got.code, "cannot be printed" in got.err, list(Path().iterdir())) == (1, True, [])
    assert run("get", JOB_ID, "-o", "x").out == "x\n"


def test_folders_that_repeat_without_end_are_not_written(
    content: Content, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio_protocol.limits.CONTENT_BLOCKS_MAX", 20)
    cid = content.file(b"x")
    for _ in range(30):
        block = directory_block([Entry(cid, 0, 0, "a"), Entry(cid, 0, 0, "b")])
        cid = cid_of(DAG_PB, block)
        content.block(cid, block)
    got = run("get", cid, "-o", "x")
    assert (got.code, "more than 20 files" in got.err) == (1, True)
    assert len(list(Path("x").rglob("*"))) < 20


def test_a_hidden_file_is_written_only_where_it_was_asked_for(content: Content, run: Run) -> None:
    content.job(**{".profile": content.file(b"rm -r /")})
    got = run("get", JOB_ID)
    assert (got.code, "is a hidden file" in got.err, list(Path().iterdir())) == (1, True, [])
    assert run("get", JOB_ID, "-o", "x").out == "x\n"


def test_what_is_no_cid_is_said(run: Run, node: FakeNode) -> None:
    wrong = run("get", "bafkreinix")
    assert (wrong.code, "bafkreinix" in wrong.err, node.asked) == (1, True, [])


def test_a_cut_is_continued_where_it_was(content: Content, node: FakeNode, run: Run) -> None:
    cid = content.file(BIG)
    content.job(out=cid)
    content.cut = 1_500_000
    got = run("get", JOB_ID, "out", "-o", "x")
    assert (got.code, "stopped in the middle" in got.err) == (1, True)
    assert not Path("x").exists()
    [partial] = Path().iterdir()
    kept = partial.stat().st_size
    assert 0 < kept <= 1_500_000
    content.cut = None
    assert run("get", JOB_ID, "out", "-o", "x").code == 0
    assert node.calls("GET", f"/content/{cid}")[-1].range == f"bytes={kept}-"
    assert Path("x").read_bytes() == BIG
    assert [p.name for p in Path().iterdir()] == ["x"]


def test_a_damaged_half_is_noticed_at_the_end_and_removed(content: Content, run: Run) -> None:
    content.job(out=content.file(BIG))
    content.cut = 1_500_000
    run("get", JOB_ID, "out", "-o", "x")
    content.cut = None
    [partial] = Path().iterdir()
    damaged = bytearray(partial.read_bytes())
    damaged[5] ^= 1
    partial.write_bytes(damaged)
    got = run("get", JOB_ID, "out", "-o", "x")
    assert (got.code, "is damaged" in got.err) == (1, True)
    assert list(Path().iterdir()) == []
    assert run("get", JOB_ID, "out", "-o", "x").code == 0


def test_other_content_is_not_overwritten_without_force(content: Content, run: Run) -> None:
    content.job(out=content.file(BIG))
    Path("x").write_bytes(b"mine")
    got = run("get", JOB_ID, "out", "-o", "x")
    assert (got.code, "x exists and holds something else" in got.err) == (1, True)
    assert Path("x").read_bytes() == b"mine"
    assert run("get", JOB_ID, "out", "-o", "x", "--force").code == 0
    again = run("get", JOB_ID, "out", "-o", "x")
    assert (again.code, Path("x").read_bytes()) == (0, BIG)


def test_a_node_that_sends_other_bytes_is_caught(
    content: Content, node: FakeNode, run: Run
) -> None:
    cid = content.file(b"right")
    node.on("GET", f"/content/{cid}", Raw(b"wrong"))
    got = run("get", cid, "-o", "x")
    assert (got.code, "is damaged" in got.err) == (1, True)
    cid = content.file(BIG)
    content.block(cid, b"other")
    got = run("get", cid, "-o", "x")
    assert (got.code, "other bytes than block" in got.err) == (1, True)
    assert list(Path().iterdir()) == []


def test_a_failed_job_has_nothing_to_get(node: FakeNode, run: Run) -> None:
    result = {"jobId": JOB_ID, "status": "failed", "error": "no luck", "outputs": []}
    node.on("GET", f"/results/{JOB_ID}", result)
    got = run("get", JOB_ID)
    assert (got.code, "failed: no luck" in got.err) == (1, True)


# -- verify ------------------------------------------------------------------------------------


def _car(flip: int | None = None) -> bytes:
    lab, _, evidence = two_jobs()
    made = pack_export(evidence, [], lab.blocks)
    blocks = {**made.blocks, **lab.blocks}
    data = car_header(made.root) + b"".join(car_section(*item) for item in blocks.items())
    if flip is None:
        return data
    return data[:flip] + bytes([data[flip] ^ 1]) + data[flip + 1 :]


def _lines(*steps: dict[str, Any]) -> Raw:
    return Raw(b"".join(json.dumps(step).encode() + b"\n" for step in steps))


def _step(what: str, ok: bool = True, hint: str | None = None) -> dict[str, Any]:
    by = [{"peerId": "12D3KooWnode", "member": "bob"}]
    named = {"jobId": JOB_ID, "resultCid": JOB_ID, "hint": hint}
    return {"check": what, "ok": ok, "proved": ok, "words": f"its {what}", "by": by, **named}


def test_a_file_is_verified_without_a_node(run: Run) -> None:
    Path("x.car").write_bytes(_car())
    done = run("verify", "x.car")
    assert done.code == 0, done.err
    assert "ok    request   job" in done.out
    assert "by bob (" in done.out
    assert "verified  completed: 2 results" in done.out
    shown = json.loads(run("verify", "x.car", "--json").out)
    assert (shown["verified"], shown["checks"][-1]["check"]) == (True, "verified")


def test_a_job_whose_name_would_do_things_to_a_terminal_is_shown_without_them(
    node: FakeNode, run: Run
) -> None:
    name = "\x1b[2J\r\nok    verified  completed"
    steps = [{"note": name}, {**_step("request", False, "?"), "words": f"job of {name}"}]
    node.on("GET", f"/results/{JOB_ID}/verify", _lines(*steps))
    done = run("verify", JOB_ID)
    shown = done.out + done.err
    assert (done.code, "\x1b" in shown, "\r" in shown) == (1, False, False)
    assert not any(line.startswith("ok ") for line in shown.splitlines())


def test_a_damaged_file_is_a_break(run: Run) -> None:
    data = _car()
    for at in (5, 200, 5000, len(data) - 3):
        Path("x.car").write_bytes(_car(at))
        done = run("verify", "x.car")
        assert (done.code, "the chain breaks at" in done.err) == (1, True), at
        assert "hint: " in done.err
        shown = run("verify", "x.car", "--json")
        assert (shown.code, json.loads(shown.out)["verified"]) == (1, False)
    Path("x.car").write_bytes(data[:-1])
    assert "ends in the middle" in run("verify", "x.car").err


def test_the_first_break_ends_it_with_a_hint(node: FakeNode, run: Run) -> None:
    steps: list[dict[str, Any]] = [
        {"progress": {"fetching": True}},
        {"note": "content bafyx could not be fetched"},
        _step("request"),
        {"progress": {"blocks": 64, "bytes": 1}},
        _step("output", False, "get it from somebody else"),
    ]
    node.on("GET", f"/results/{JOB_ID}/verify", _lines(*steps))
    done = run("verify", JOB_ID)
    assert done.code == 1
    assert done.out.splitlines()[-1].split()[:2] == ["BREAK", "output"]
    assert "not fetched: content bafyx" in done.err
    assert "the chain breaks at output: its output" in done.err
    assert done.err.endswith("hint: get it from somebody else\n")
    shown = json.loads(run("verify", JOB_ID, "--json").out)
    assert (shown["verified"], len(shown["checks"]), len(shown["notes"])) == (False, 2, 1)


def test_an_answer_that_ends_before_the_end_is_no_yes(node: FakeNode, run: Run) -> None:
    node.on("GET", f"/results/{JOB_ID}/verify", _lines(_step("request")))
    assert run("verify", JOB_ID).code == 1
    node.on("GET", f"/results/{JOB_ID}/verify", _lines())
    assert run("verify", JOB_ID).code == 3


def test_offline_is_handed_on(node: FakeNode, run: Run) -> None:
    node.on("GET", f"/results/{JOB_ID}/verify", _lines(_step("verified")))
    assert run("verify", JOB_ID, "--offline", "--service", "lab").code == 0
    assert node.asked[-1].query == {"serviceName": "lab", "offline": "true"}


def test_provenance_is_printed_in_the_form_asked_for(node: FakeNode, run: Run) -> None:
    def answer(asked: Asked) -> Raw:
        return Raw({"json": b'{"results": []}', "dot": b"digraph {}\n"}[asked.query["format"]])

    node.on("GET", f"/results/{JOB_ID}/provenance", answer)
    assert json.loads(run("job", "provenance", JOB_ID).out) == {"results": []}
    assert run("job", "provenance", JOB_ID, "--format", "dot").out == "digraph {}\n"
    wrong = run("job", "provenance", JOB_ID, "--format", "xml")
    assert (wrong.code, "in-toto" in wrong.err) == (2, True)


# -- export and import -------------------------------------------------------------------------


def test_an_export_is_written_whole_or_not_at_all(node: FakeNode, run: Run) -> None:
    node.on("GET", f"/results/{JOB_ID}/bring", _lines({"progress": {"fetching": True}}))
    node.on("GET", f"/results/{JOB_ID}/export", Raw(b"x" * 100_000, cut=10))
    cut = run("export", JOB_ID, "-o", "x.car")
    assert (cut.code, list(Path().iterdir())) == (1, [])
    node.on("GET", f"/results/{JOB_ID}/export", Raw(b"car"))
    done = run("export", JOB_ID, "-o", "x.car")
    assert (done.code, done.out, Path("x.car").read_bytes()) == (0, "x.car\n", b"car")
    again = run("export", JOB_ID, "-o", "x.car")
    assert (again.code, "x.car exists" in again.err) == (1, True)
    assert run("export", JOB_ID, "-o", "x.car", "--force").code == 0
    node.refuse("GET", f"/results/{JOB_ID}/export", 503, "content bafyx is missing", "try again")
    assert run("export", JOB_ID, "-o", "y.car").code == 3
    assert not Path("y.car").exists()


def _imported(run: Run, node: FakeNode, **changed: Any) -> Ran:
    Path("x.car").write_bytes(b"car")
    row = {"resultCid": JOB_ID, "counts": True, "why": None}
    found = {
        "roots": ["bafyroot"],
        "blocks": 3,
        "size": 100,
        "serviceId": "bafyservice",
        "serviceName": "lab",
        "results": [row],
    }
    node.on("POST", "/import", {**found, **changed})
    return run("import", "x.car")


def test_an_import_says_what_became_of_it(node: FakeNode, run: Run) -> None:
    done = _imported(run, node)
    assert (done.code, done.out) == (0, f"{JOB_ID}\n")
    assert "1 result counts in 'lab'" in done.err
    assert node.asked[-1].body == b"car"
    stranger = _imported(run, node, serviceName=None)
    assert (stranger.code, "kept as content only" in stranger.err) == (0, True)
    only = _imported(run, node, serviceName=None, serviceId=None, results=[])
    assert (only.code, only.out) == (0, "bafyroot\n")
    row = {"resultCid": JOB_ID, "counts": False, "why": "its author had no role"}
    refused = _imported(run, node, results=[row])
    assert (refused.code, "its author had no role" in refused.err) == (1, True)


def test_files_that_are_not_there_are_said_so(run: Run, node: FakeNode) -> None:
    for command in (["import", "nix.car"], ["verify", "nix.car"]):
        wrong = run(*command)
        assert (wrong.code, "cannot read nix.car" in wrong.err) == (1, True)
    assert node.asked == []
