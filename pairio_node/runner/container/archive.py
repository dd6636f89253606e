"""A docker-archive as content: checked from outside, and handed on rewritten.

Whoever made the archive may mean harm: to the engine (a small layer that unpacks to terabytes, odd
paths), to its owner (a tag that takes the place of one of his images), or to who installed the app
(another image). So nothing of it is unpacked here; its configuration has to have the image's id,
every layer the digest that the configuration says; and the engine gets a new archive that holds
these alone, under a tag of this node's making.
"""

import hashlib
import json
import platform
import posixpath
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from pairio_node.runner.container.tar import BLOCK_BYTES, TarEntry, TarError, read_entries

__all__ = [
    "Image",
    "ImageError",
    "Layer",
    "check_archive",
    "clean_archive",
    "clean_size",
    "tag_of",
    "why_not_here",
]

#: Every image that a node hands to an engine is tagged with this name and its id.
REPOSITORY: Final = "localhost/pairio-image"
_LAYERS_MAX: Final = 127
_MEMBERS_MAX: Final = 10_000
_TEXT_BYTES_MAX: Final = 4 * 2**20
_PIECE_BYTES: Final = 1024 * 1024
_GZIP: Final = b"\x1f\x8b"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "AMD64": "amd64"}


class ImageError(Exception):
    """The archive holds no image that is taken; says why."""


@dataclass(frozen=True)
class Layer:
    """A layer in its file: where it lies, as it is there and unpacked, and whether it is packed."""

    offset: int
    stored_bytes: int
    size_bytes: int
    is_packed: bool


@dataclass(frozen=True)
class Image:
    """An image that holds what its id says."""

    id: str
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all layers, unpacked."""
        return sum(layer.size_bytes for layer in self.layers)


def tag_of(image_id: str) -> str:
    """Return the tag under which a node loads an image."""
    return f"{REPOSITORY}:{image_id.removeprefix('sha256:')}"


def check_archive(path: Path, size_bytes_max: int) -> Image:
    """Return the image of a docker-archive after reading all of it; blocks, call it in a thread.

    Raises:
        ImageError: it is none, damaged, larger than allowed, or holds what is not taken.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            members = _members(file)
            entry = _manifest(file, members)
            config_file = _member(members, entry.get("Config"), "configuration")
            config = _text(file, config_file)
            digests = _digests(config)
            names = entry.get("Layers")
            if not isinstance(names, list) or len(names) != len(digests):
                raise ImageError("its manifest and its configuration name other layers")
            layers, left_bytes = [], size_bytes_max
            for name, digest in zip(names, digests, strict=True):
                layers.append(_layer(file, _member(members, name, "layer"), digest, left_bytes))
                left_bytes -= layers[-1].size_bytes
        except TarError as error:
            raise ImageError(f"its tar file: {error}") from None
    return Image(f"sha256:{hashlib.sha256(config).hexdigest()}", config, tuple(layers))


def _members(file: BinaryIO) -> dict[str, TarEntry]:
    if file.read(2) == _GZIP:
        raise ImageError("it is packed with gzip: unpack it first (gunzip)")
    size = file.seek(0, 2)
    file.seek(0)

    def skip(count: int) -> None:
        if file.seek(count, 1) > size:
            raise TarError("it is cut off")

    found: dict[str, TarEntry] = {}
    for entry in read_entries(file.read, skip, _MEMBERS_MAX):
        name = posixpath.normpath(entry.name)
        if name.startswith("/"):
            raise TarError(f"a name that leads out of it: {name[:100]!r}")
        if entry.kind != "5" and name in found:
            raise TarError(f"{name[:100]!r} stands there twice")
        found[name] = entry
    return found


def _member(members: dict[str, TarEntry], name: Any, what: str) -> TarEntry:
    """Return a file of the archive; a link inside it is followed once, as `docker save` makes."""
    entry = members.get(posixpath.normpath(name)) if isinstance(name, str) and name else None
    if entry is not None and entry.kind == "2":
        folder = posixpath.dirname(posixpath.normpath(entry.name))
        entry = members.get(posixpath.normpath(posixpath.join(folder, entry.link)))
    if entry is None or not entry.is_file:
        raise ImageError(f"it lacks the {what} {str(name)[:100]!r} that its manifest names")
    return entry


def _text(file: BinaryIO, entry: TarEntry) -> bytes:
    if entry.size_bytes > _TEXT_BYTES_MAX:
        raise ImageError(f"{entry.name[:100]!r} has {entry.size_bytes} bytes")
    file.seek(entry.offset)
    return file.read(entry.size_bytes)


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ImageError(f"its {what} is not JSON") from None


def _manifest(file: BinaryIO, members: dict[str, TarEntry]) -> dict[str, Any]:
    if "manifest.json" not in members:
        hint = "make one with `docker save` or `podman save --format docker-archive`"
        raise ImageError(f"it is no docker-archive, as it has no manifest.json: {hint}")
    listed = _json(_text(file, _member(members, "manifest.json", "file")), "manifest.json")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ImageError("its manifest.json is no list of images")
    if len(listed) != 1:
        raise ImageError(f"it holds {len(listed)} images: save one")
    entry: dict[str, Any] = listed[0]
    return entry


def _digests(config: bytes) -> list[str]:
    """Return the digests of the layers that a configuration names, if a node takes it."""
    image = _json(config, "configuration")
    root = image.get("rootfs") if isinstance(image, dict) else None
    digests = root.get("diff_ids") if isinstance(root, dict) else None
    if not isinstance(digests, list) or not all(isinstance(d, str) for d in digests):
        raise ImageError("its configuration names no layers")
    if not 0 < len(digests) <= _LAYERS_MAX:
        raise ImageError(f"it has {len(digests)} layers; 1 to {_LAYERS_MAX} are taken")
    settings = image.get("config") or {}
    if not isinstance(settings, dict):
        raise ImageError("its configuration cannot be read")
    if settings.get("Volumes"):
        raise ImageError(
            "it declares volumes, which would be folders without a bound: build it without VOLUME"
        )
    return digests


def why_not_here(image: Image) -> str:
    """Return why an image cannot run on this machine; empty when it can."""
    config = json.loads(image.config)
    here = _MACHINES.get(platform.machine(), platform.machine())
    made_for = f"{config.get('os')}/{config.get('architecture')}"
    return "" if made_for == f"linux/{here}" else f"it is for {made_for}, this is linux/{here}"


def _layer(file: BinaryIO, entry: TarEntry, digest: str, size_bytes_max: int) -> Layer:
    """Read a layer to its end: its digest, the headers of its files, its size unpacked."""
    file.seek(entry.offset)
    is_packed = file.read(2) == _GZIP
    pieces = _pieces(file, entry.offset, entry.size_bytes, is_packed)
    stream = _Counted(pieces, size_bytes_max)
    for _ in read_entries(stream.read):
        pass
    stream.drain()
    found = f"sha256:{stream.hash.hexdigest()}"
    if found != digest:
        raise ImageError(f"a layer is {found}, and its configuration says {digest[:100]}: damaged?")
    return Layer(entry.offset, entry.size_bytes, stream.count, is_packed)


class _Counted:
    """A stream of pieces as a file, hashed and bounded."""

    def __init__(self, pieces: Iterator[bytes], size_bytes_max: int) -> None:
        self._pieces = pieces
        self._size_bytes_max = size_bytes_max
        self._left = b""
        self._at = 0
        self.hash = hashlib.sha256()
        self.count = 0

    def read(self, size: int) -> bytes:
        if self._at == len(self._left):
            self._left, self._at = next(self._pieces, b""), 0
            self.hash.update(self._left)
            self.count += len(self._left)
            if self.count > self._size_bytes_max:
                raise ImageError(f"it unpacks to more than {self._size_bytes_max} bytes")
        data = self._left[self._at : self._at + size]
        self._at += len(data)
        return data

    def drain(self) -> None:
        while self.read(_PIECE_BYTES):
            pass


def _pieces(file: BinaryIO, offset: int, stored_bytes: int, is_packed: bool) -> Iterator[bytes]:
    """Yield a layer unpacked. Small pieces: a bomb is seen before it takes memory."""
    file.seek(offset)
    unpack = zlib.decompressobj(wbits=31) if is_packed else None
    left_bytes = stored_bytes
    try:
        while left_bytes:
            data = file.read(min(left_bytes, _PIECE_BYTES))
            if not data:
                raise ImageError("it is cut off")
            left_bytes -= len(data)
            if unpack is None:
                yield data
                continue
            while data:
                if unpack.eof:  # a gzip file may have several parts
                    unpack = zlib.decompressobj(wbits=31)
                if piece := unpack.decompress(data, _PIECE_BYTES):
                    yield piece
                data = unpack.unconsumed_tail or unpack.unused_data
        while unpack is not None and not unpack.eof:
            if not (piece := unpack.decompress(b"", _PIECE_BYTES)):
                raise ImageError("a packed layer is cut off")
            yield piece
    except zlib.error as error:
        raise ImageError(f"a packed layer is damaged: {error}") from None


def _written(image: Image) -> list[tuple[str, int, bytes | Layer]]:
    """Return the files of the rewritten archive: name, size, content."""
    config_name = f"{image.id.removeprefix('sha256:')}.json"
    names = [f"{number}.tar" for number in range(len(image.layers))]
    entry = {"Config": config_name, "RepoTags": [tag_of(image.id)], "Layers": names}
    manifest = json.dumps([entry]).encode()
    files: list[tuple[str, int, bytes | Layer]] = [
        ("manifest.json", len(manifest), manifest),
        (config_name, len(image.config), image.config),
    ]
    for name, layer in zip(names, image.layers, strict=True):
        files.append((name, layer.size_bytes, layer))
    return files


def clean_size(image: Image) -> int:
    """Return the bytes of the rewritten archive."""
    sizes = [BLOCK_BYTES + size + -size % BLOCK_BYTES for _, size, _ in _written(image)]
    return sum(sizes) + 2 * BLOCK_BYTES


def clean_archive(path: Path, image: Image) -> Iterator[bytes]:
    """Yield a docker-archive with nothing but this image, unpacked, under the node's own tag."""
    with open(path, "rb") as file:
        for name, size, content in _written(image):
            yield _header(name, size)
            if isinstance(content, Layer):
                yield from _pieces(file, content.offset, content.stored_bytes, content.is_packed)
            else:
                yield content
            yield bytes(-size % BLOCK_BYTES)
    yield bytes(2 * BLOCK_BYTES)


def _header(name: str, size: int) -> bytes:
    head = bytearray(BLOCK_BYTES)

    def put(at: int, data: bytes) -> None:
        head[at : at + len(data)] = data

    put(0, name.encode())
    put(100, b"0000644\0" + b"0000000\0" * 2)
    put(124, b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big"))
    put(136, b"00000000000\0")
    put(148, b" " * 8)
    put(156, b"0")
    put(257, b"ustar\00000")
    put(148, b"%06o\0 " % sum(head))
    return bytes(head)
