"""Docker-archives as content: what is taken, what is refused, what an engine gets of them."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pairio_node.runner.container.archive import (
    ImageError,
    check_archive,
    clean_archive,
    clean_size,
    tag_of,
    why_not_here,
)
from pairio_node.runner.container.skeleton import write_skeleton
from pairio_node.runner.container.tar import TarError, read_entries
from tests.node.image_lab import config_of, id_of, layer, save, write_tar

MIB = 2**20
LAYERS = (layer({"bin/tool": b"#!/bin/sh\necho one\n"}), layer({"data/" + "n" * 150: b"x" * 5000}))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "image.tar"


def _clean(path: Path) -> bytes:
    return b"".join(clean_archive(path, check_archive(path, MIB)))


def _refused(path: Path, words: str, size_bytes_max: int = MIB) -> None:
    with pytest.raises(ImageError, match=words):
        check_archive(path, size_bytes_max)


def test_the_id_of_an_image_is_the_digest_of_its_configuration(archive: Path) -> None:
    image_id = save(archive, LAYERS)
    image = check_archive(archive, MIB)
    assert image.id == image_id
    assert image.size_bytes == sum(map(len, LAYERS))
    assert why_not_here(image) == ""


def test_the_same_image_is_the_same_content_however_it_was_saved(tmp_path: Path) -> None:
    save(tmp_path / "a.tar", LAYERS)
    save(tmp_path / "b.tar", LAYERS, packed=True, tag="other/name:2")
    assert _clean(tmp_path / "a.tar") == _clean(tmp_path / "b.tar")
    again = tmp_path / "again.tar"
    again.write_bytes(_clean(tmp_path / "a.tar"))
    assert _clean(again) == again.read_bytes()


def test_an_engine_gets_the_image_and_nothing_else_under_the_node_s_own_tag(archive: Path) -> None:
    config = config_of(LAYERS)
    entry = {"Config": "c", "RepoTags": ["python:3.12"], "Layers": ["a", "b"]}
    files = [("c", config), ("a", LAYERS[0]), ("b", LAYERS[1]), ("etc/cron.d/evil", b"evil")]
    files += [("manifest.json", json.dumps([entry]).encode()), ("repositories", b'{"python":{}}')]
    clean = _clean(write_tar(archive, files))
    assert len(clean) == clean_size(check_archive(archive, MIB))
    with tarfile.open(fileobj=io.BytesIO(clean)) as tar:
        names = tar.getnames()
        assert names == ["manifest.json", f"{id_of(config)[7:]}.json", "0.tar", "1.tar"]
        manifest = json.load(tar.extractfile("manifest.json") or io.BytesIO())
        assert manifest[0]["RepoTags"] == [tag_of(id_of(config))]
        assert tar.extractfile("1.tar").read() == LAYERS[1]  # type: ignore[union-attr]


def test_layers_may_be_links_inside_the_archive_and_nowhere_else(archive: Path) -> None:
    config = config_of(LAYERS[:1])
    entry = {"Config": "c", "Layers": ["x/layer.tar"]}
    link = tarfile.TarInfo("x/layer.tar")
    link.type, link.linkname = tarfile.SYMTYPE, "../blobs/0"
    manifest = ("manifest.json", json.dumps([entry]).encode())
    files = [("c", config), ("blobs/0", LAYERS[0]), manifest]
    assert check_archive(write_tar(archive, files, link), MIB).id == id_of(config)
    link.linkname = "../../../../../../etc/passwd"
    _refused(write_tar(archive, files, link), "lacks the layer")


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_byte_is_noticed(archive: Path, seed: int) -> None:
    save(archive, LAYERS)
    image_id, data = check_archive(archive, MIB).id, bytearray(archive.read_bytes())
    found = data.find(LAYERS[1])
    at = random.Random(seed).randrange(found, found + len(LAYERS[1]))
    data[at] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ImageError):
        check_archive(archive, MIB)
    at = data.find(b"architecture")
    data[at] ^= 1  # another configuration is another image: whoever asks for this one gets none
    save(archive, LAYERS, created="2026")
    assert check_archive(archive, MIB).id != image_id


def test_a_layer_that_unpacks_to_more_than_allowed_is_given_up_early(archive: Path) -> None:
    entry = tarfile.TarInfo("zeros")
    entry.size = 512 * MIB
    bomb = gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(64 * MIB), compresslevel=1)
    config = config_of([b"never read to its end"])
    files = [("c", config), ("l", bomb)]
    files.append(("manifest.json", json.dumps([{"Config": "c", "Layers": ["l"]}]).encode()))
    _refused(write_tar(archive, files), "unpacks to more than", 10 * MIB)


def _bad_layer(archive: Path, data: bytes) -> None:
    save(archive, [data])
    with pytest.raises(ImageError):
        check_archive(archive, MIB)


def _entry(
    name: str, kind: bytes = tarfile.REGTYPE, pax: dict[str, str] | None = None
) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.pax_headers = kind, pax or {}
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        _entry("../../etc/cron.d/evil"),
        _entry("a/../../b"),
        _entry("sparse", tarfile.GNUTYPE_SPARSE),
        _entry("sparse", pax={"GNU.sparse.realsize": str(2**60), "GNU.sparse.major": "1"}),
        _entry("unknown", b"Z"),
        _entry("size", pax={"size": "many"}),
    ],
    ids=["leads out", "leads out later", "sparse", "sparse in pax", "unknown kind", "no number"],
)
def test_layers_with_what_unpacks_to_harm_are_refused(archive: Path, entry: Any) -> None:
    _bad_layer(archive, layer({"a": b"a"}, entry))


def test_a_header_that_wants_gigabytes_is_refused_without_reading_them() -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 3 * 2**30
    head = entry.tobuf(tarfile.GNU_FORMAT)
    asked: list[int] = []

    def read(count: int) -> bytes:
        asked.append(count)
        return head[:count] if len(asked) == 1 else bytes(count)

    with pytest.raises(TarError, match="extended header"):
        list(read_entries(read))
    assert max(asked) <= MIB


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"Volumes": {"/data": {}}}}, "declares volumes"),
        ({"config": ["Volumes"]}, "cannot be read"),
        ({"rootfs": {"diff_ids": []}}, "0 layers"),
        ({"rootfs": {"diff_ids": ["sha256:" + "0" * 64] * 128}}, "128 layers"),
        ({"rootfs": None}, "names no layers"),
        ({"rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}, "name other layers"),
        ({"rootfs": {"diff_ids": ["sha256:" + "0" * 64] * 2}}, "a layer is"),
    ],
)
def test_configurations_that_are_not_taken(archive: Path, changes: Any, words: str) -> None:
    save(archive, LAYERS, **changes)
    _refused(archive, words)


def test_an_image_for_other_machines_is_content_but_does_not_run_here(archive: Path) -> None:
    save(archive, LAYERS, architecture="riscv64")
    assert "linux/riscv64" in why_not_here(check_archive(archive, MIB))


def _manifest(value: Any) -> list[tuple[str, bytes]]:
    return [("manifest.json", json.dumps(value).encode())]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "no manifest.json"),
        ([("manifest.json", b"[[[")], "not JSON"),
        ([("manifest.json", b"[" * 100_000)], "not JSON"),
        (_manifest({}), "no list"),
        (_manifest([{}, {}]), "2 images"),
        (_manifest([{"Config": "nothing", "Layers": []}]), "lacks the configuration"),
        (_manifest([{"Config": 7, "Layers": []}]), "lacks the configuration"),
        (_manifest([{"Config": "/etc/passwd", "Layers": []}]), "lacks the configuration"),
        ([*_manifest([]), *_manifest([])], "twice"),
        ([("../x", b""), *_manifest([])], "leads out"),
        ([("/x", b""), *_manifest([])], "leads out"),
    ],
)
def test_what_is_no_docker_archive_is_refused(
    archive: Path, files: list[tuple[str, bytes]], words: str
) -> None:
    _refused(write_tar(archive, files), words)


def test_an_archive_that_is_packed_says_so(archive: Path) -> None:
    save(archive, LAYERS)
    archive.write_bytes(gzip.compress(archive.read_bytes()))
    _refused(archive, "gunzip")


def test_an_archive_that_was_cut_off_is_refused(archive: Path) -> None:
    save(archive, LAYERS)
    data = archive.read_bytes()
    for length in range(0, len(data.rstrip(b"\0")), 997):
        archive.write_bytes(data[:length])
        with pytest.raises(ImageError):
            check_archive(archive, MIB)


@pytest.mark.parametrize("packed", [False, True])
def test_rubbish_is_refused_in_words(archive: Path, packed: bool) -> None:
    save(archive, LAYERS, packed=packed)
    data = archive.read_bytes()
    chance = random.Random(7)
    for _ in range(300):
        bad = bytearray(data)
        for _ in range(chance.randrange(1, 8)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        archive.write_bytes(bad)
        try:
            check_archive(archive, MIB)
        except ImageError:
            continue


def test_the_skeleton_is_the_same_each_time_and_passes_the_check(tmp_path: Path) -> None:
    first, second = write_skeleton(tmp_path / "a"), write_skeleton(tmp_path / "b")
    assert first == second == check_archive(tmp_path / "a", MIB).id
