"""`pairio content`, and folders as inputs: what is sent, asked again, and said."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.sdk.fake_node import Asked, FakeNode

REFS = "/content/references"


def _done(**changed: Any) -> dict[str, Any]:
    return {
        "state": "done",
        "path": "/data",
        "cid": "bafynew",
        "size": 5,
        "wasHashed": True,
        "before": None,
        "dependents": [],
        **changed,
    }


def test_a_folder_is_sent_file_by_file_with_its_empty_folders(
    node: FakeNode, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "f" / "sub" / "empty").mkdir(parents=True)
    (tmp_path / "f" / "b").write_bytes(b"bb")
    (tmp_path / "f" / "sub" / "a").write_bytes(b"a")

    def added(asked: Asked) -> dict[str, Any]:
        return {"cid": f"cid-{(asked.body or b'').decode()}", "size": len(asked.body or b"")}

    node.on("POST", "/content", added)
    node.on("POST", "/content/folders", {"cid": "bafyfolder", "size": 3})
    node.on("POST", "/services/lab/content", {})
    ran = run("content", "add", str(tmp_path / "f"), "--service", "lab")
    assert (ran.code, ran.out) == (0, "bafyfolder\n")
    (asked,) = node.calls("POST", "/content/folders")
    assert asked.body["entries"] == [
        {"path": "b", "cid": "cid-bb"},
        {"path": "sub/a", "cid": "cid-a"},
        {"path": "sub/empty", "cid": None},
    ]
    assert node.calls("POST", "/services/lab/content")[0].body == {"cid": "bafyfolder"}


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_nothing_is_sent_of_a_folder_that_cannot_be_sent_whole(
    what: str, node: FakeNode, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_bytes(b"a")
    link = tmp_path / "f" / "z"
    if what == "link":
        link.symlink_to("/etc/passwd")
    else:
        os.mkfifo(link)
    ran = run("content", "add", str(tmp_path / "f"))
    assert (ran.code, node.asked) == (1, [])
    assert str(link) in ran.err


def test_hashing_is_asked_for_again_until_it_is_done(
    node: FakeNode, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").write_bytes(b"12345")
    hashing = {"state": "hashing", "path": "/data", "readBytes": 3}
    node.on("POST", REFS, [hashing, hashing, _done(before="bafyold", dependents=["j1", "j2"])])
    ran = run("content", "add", str(tmp_path / "data"), "--nocopy")
    assert (ran.code, ran.out) == (0, "bafynew\n")
    bodies = [asked.body for asked in node.calls("POST", REFS)]
    assert [body["path"] for body in bodies] == [str(tmp_path / "data")] * 3
    assert "content bafyold is gone from this node; known here as an input of 2 jobs" in ran.err
    assert node.calls("POST", "/content") == [], "no bytes are sent"


def test_what_was_added_is_listed_and_forgotten(node: FakeNode, run: Run) -> None:
    row = {"path": "/d", "type": "file", "size": 5, "state": "changed", "dependents": ["j"]}
    node.on("GET", REFS, {"references": [{**row, "cid": "bafyx", "addedUnixMs": 1}]})
    ran = run("content", "refs")
    assert (ran.code, ran.out.splitlines()[1].split()) == (
        0,
        ["/d", "file", "5", "changed", "1", "bafyx"],
    )
    assert "add it again" in ran.err
    node.on("DELETE", REFS, {"cids": ["bafyx"]})
    ran = run("content", "forget", "/d")
    assert (ran.code, ran.out) == (0, "bafyx\n")
    assert node.calls("DELETE", REFS)[0].query == {"path": "/d"}
    node.on("GET", REFS, {"references": []})
    assert "nothing was added without a copy" in run("content", "refs").err
