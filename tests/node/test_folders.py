"""Folders: put together from files that are here, as inputs of jobs and as outputs."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairio_node.blocks import Content, DiskBlockStore
from pairio_node.errors import UserError
from pairio_node.folders import _put, build_folder
from pairio_protocol.cid import RAW, cid_of


def _content(path: Path) -> Content:
    return Content(DiskBlockStore(path / "blocks", 2**30))


async def test_a_folder_put_together_has_the_cid_of_the_same_folder_on_disk(tmp_path: Path) -> None:
    content = _content(tmp_path)
    top = tmp_path / "f"
    (top / "sub" / "empty").mkdir(parents=True)
    files = {"a.txt": b"a", "sub/big.bin": bytes(2**20 + 1), "sub/\n\u00fc": b"odd"}
    entries: list[tuple[str, str | None]] = [("sub/empty", None)]
    for name, data in files.items():
        (top / name).write_bytes(data)
        entries.append((name, (await content.add_bytes(data)).cid))
    assert await build_folder(content, entries) == await content.add_directory(top)
    assert await build_folder(content, []) == await content.add_directory(top / "sub" / "empty")


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["../x"], "is no path in a folder"),
        (["/x"], "is no path in a folder"),
        (["a//b"], "is no path in a folder"),
        (["a/"], "is no path in a folder"),
        (["."], "is no path in a folder"),
        ([""], "is no path in a folder"),
        (["a\0b"], "is no path in a folder"),
        (["x" * 256], "is no path in a folder"),
        (["\ud800"], "cannot be stored"),
        (["a", "a"], "stands there twice"),
        (["a", "a/b"], "lies in 'a', which is a file"),
        (["a/b", "a"], "stands there twice"),
        (["/".join("a" * 70)], "lies deeper than"),
    ],
)
async def test_paths_that_cannot_be_are_refused_in_words(
    paths: list[str], said: str, tmp_path: Path
) -> None:
    content = _content(tmp_path)
    cid = (await content.add_bytes(b"x")).cid
    with pytest.raises(UserError, match=said):
        await build_folder(content, [(path, cid) for path in paths])


async def test_what_is_not_here_or_no_file_is_refused(tmp_path: Path) -> None:
    content = _content(tmp_path)
    for cid, said in (
        (cid_of(RAW, b"elsewhere"), "is not here"),
        ((await build_folder(content, [])).cid, "is a folder"),
        ("../../etc/passwd", "is no file"),
    ):
        with pytest.raises(UserError, match=said):
            await build_folder(content, [("a", cid)])


@given(st.lists(st.text(st.sampled_from("ab/.\0"), max_size=6), max_size=6))
def test_no_path_leaves_the_folder(paths: list[str]) -> None:
    tree: Any = {}
    for path in paths:
        try:
            _put(tree, path, "cid")
        except UserError:
            continue

    def names(inner: Any) -> set[str]:
        if isinstance(inner, str):
            return set()
        return set(inner).union(*(names(v) for v in inner.values()))

    for name in names(tree):
        assert name not in ("", ".", "..")
        assert not set(name) & {"/", "\0"}
