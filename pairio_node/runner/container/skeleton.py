"""An image with nothing but empty folders, for what runs on this machine's own system.

With /usr and the node's interpreter mounted it is what bwrap's sandbox is: the probe runs in it,
and apps without an image where there is no bubblewrap. It needs no registry and has a few KB.
"""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

__all__ = ["write_skeleton"]

_FOLDERS = ("usr", "etc", "etc/alternatives", "app", "in", "data", "opt", "var", "var/tmp", "run")
_LINKED = ("bin", "lib", "lib64", "sbin")


def write_skeleton(path: Path) -> str:
    """Write the docker-archive; returns the image's id, which is the same at each call."""
    layer = _layer()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
        "history": [{"created_by": "pairio"}],
    }
    text = json.dumps(config, sort_keys=True).encode()
    image = hashlib.sha256(text).hexdigest()
    manifest = [{"Config": f"{image}.json", "RepoTags": None, "Layers": ["0.tar"]}]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, "manifest.json", json.dumps(manifest).encode())
        _add(archive, f"{image}.json", text)
        _add(archive, "0.tar", layer)
    return f"sha256:{image}"


def _layer() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as layer:
        for name in _FOLDERS:
            layer.addfile(_entry(name, tarfile.DIRTYPE))
        for name in _LINKED:
            if Path("/", name).is_symlink():  # as on this machine, of which it shows /usr
                layer.addfile(_entry(name, tarfile.SYMTYPE, f"usr/{name}"))
            elif Path("/", name).exists():
                layer.addfile(_entry(name, tarfile.DIRTYPE))
        layer.addfile(_entry("tmp", tarfile.DIRTYPE, mode=0o1777))
    return data.getvalue()


def _entry(name: str, kind: bytes, link: str = "", mode: int = 0o755) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, link, mode
    return entry


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))
