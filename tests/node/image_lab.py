"""Makes docker-archives for tests: as engines save them, and as nobody should."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def layer(files: dict[str, bytes] | None = None, *more: tarfile.TarInfo) -> bytes:
    """Return a layer with files (executable) and further entries."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folders = {str(p) for name in files or {} for p in Path(name).parents} - {"."}
        for name in sorted(folders):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for name, content in (files or {}).items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
        for entry in more:
            tar.addfile(entry)
    return data.getvalue()


def config_of(layers: Sequence[bytes], **changes: Any) -> bytes:
    """Return the configuration of an image of these layers (unpacked)."""
    config = {
        "architecture": MACHINE,
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers],
        },
        **changes,
    }
    return json.dumps(config, sort_keys=True).encode()


def id_of(config: bytes) -> str:
    """Return the id of the image with this configuration."""
    return f"sha256:{hashlib.sha256(config).hexdigest()}"


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], *more: tarfile.TarInfo) -> Path:
    """Write a tar file of these files in this order."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in more:
            tar.addfile(entry)
    return path


def save(
    path: Path,
    layers: Sequence[bytes],
    *,
    packed: bool = False,
    tag: str = "me/app:1",
    **config: Any,
) -> str:
    """Write an archive as `docker save` does; returns the image's id."""
    text = config_of(layers, **config)
    names = [f"{number:064x}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": f"{id_of(text)[7:]}.json", "RepoTags": [tag], "Layers": names}]
    stored = [gzip.compress(data, mtime=0) if packed else data for data in layers]
    files = [(f"{id_of(text)[7:]}.json", text), *zip(names, stored, strict=True)]
    write_tar(path, [*files, ("manifest.json", json.dumps(manifest).encode())])
    return id_of(text)
