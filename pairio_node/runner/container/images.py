"""Images in the engine: handed to it from a checked archive, kept within a bound.

What was in the engine before is used as it is, and never removed. For each image that a node has
loaded there is a file with its id in the node's home, whose time is that of the last use.
"""

import os
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pairio_node.runner.container.archive import (
    Image,
    ImageError,
    check_archive,
    clean_archive,
    clean_size,
    tag_of,
    why_not_here,
)
from pairio_node.runner.supervisor.engine import Engine, EngineError

__all__ = ["Images"]

#: An image that was looked for so short ago is about to be run.
_IN_USE_S: Final = 900.0
_LOAD_S: Final = 600.0


class Images:
    """The images of one engine. All calls block: they belong into a thread, one at a time."""

    def __init__(self, engine: Engine, folder: Path | None, size_bytes_max: int) -> None:
        self._engine = engine
        self._folder = folder
        self._size_bytes_max = size_bytes_max

    def has(self, image_id: str) -> bool:
        """Say whether the engine has an image; it is taken for used now.

        Raises:
            EngineError: the engine does not say.
        """
        found = self._find(image_id)
        if found is None or not _is(found, image_id):
            return False
        mark = self._mark(image_id)
        if mark is not None and mark.exists():
            os.utime(mark)
        return True

    def load(self, image_id: str, archive: Path) -> None:
        """Hand an image to the engine. What was used least is removed for it.

        Raises:
            ImageError: the archive is refused, or the engine made something else of it.
            EngineError: the engine does not take it.
            OSError: the archive cannot be read.
        """
        image = check_archive(archive, self._size_bytes_max)
        if image.id != image_id:
            raise ImageError(f"its archive holds image {image.id}")
        if why := why_not_here(image):
            raise ImageError(why)
        self._make_room(image)
        pieces = clean_archive(archive, image)
        kind, query = "application/x-tar", {"quiet": "1"}
        size_bytes = clean_size(image)
        said = self._engine.send(
            "POST", "/images/load", query, kind, size_bytes, pieces, timeout_s=_LOAD_S
        )
        made = self._find(tag_of(image_id))
        if made is None:  # it says so in the middle of what it did
            raise ImageError(f"the engine made nothing of it: {str(said)[-500:]}")
        if not _is(made, image_id):
            self._remove(image_id)
            raise ImageError(
                f"the engine made {made['Id']} of it: one that names images by another digest than"
                " that of their configuration (Docker's containerd image store) is not supported"
            )
        mark = self._mark(image_id)
        if mark is not None:
            mark.parent.mkdir(mode=0o700, exist_ok=True)
            mark.touch()

    def save(self, name: str, archive: Path) -> bool:
        """Write an image that the owner has as a docker-archive; say whether there is one.

        Raises:
            EngineError, ImageError, OSError: it cannot be had whole.
        """
        if self._find(quote(name)) is None:
            return False
        with open(archive, "xb") as file:
            written = 0
            for piece in self._engine.download(f"/images/{quote(name)}/get"):
                written += file.write(piece)
                if written > self._size_bytes_max:
                    raise ImageError(f"it has more than {self._size_bytes_max} bytes")
        return True

    def _make_room(self, new: Image) -> None:
        """Remove images of this node until there is room; those in use stay."""
        used = self._loaded()
        free_bytes = self._size_bytes_max - sum(size for _, _, size in used) - new.size_bytes
        for last_s, image_id, size_bytes in used:
            if free_bytes >= 0:
                return
            if time.time() - last_s > _IN_USE_S and self._remove(image_id):
                free_bytes += size_bytes
        if free_bytes < 0:
            raise ImageError(
                f"there is no room for its {new.size_bytes} bytes beside the images that are in use"
                f" ([container] images_bytes_max is {self._size_bytes_max})"
            )

    def _loaded(self) -> list[tuple[float, str, int]]:
        """Return (last use, id, bytes) of the images that this node has loaded, oldest first."""
        found = []
        for mark in self._folder.iterdir() if self._folder and self._folder.exists() else ():
            image_id = f"sha256:{mark.name}"
            seen = self._find(tag_of(image_id))
            if seen is None:
                mark.unlink()  # somebody removed it
            else:
                found.append((mark.stat().st_mtime, image_id, int(seen.get("Size") or 0)))
        return sorted(found)

    def _remove(self, image_id: str) -> bool:
        """Remove an image as this node loaded it; what the owner tagged himself stays."""
        try:
            self._engine.ask("DELETE", f"/images/{tag_of(image_id)}")
        except EngineError as error:
            if error.status != 404:
                return False  # a container uses it
        if (mark := self._mark(image_id)) is not None:
            mark.unlink(missing_ok=True)
        return True

    def _find(self, name: str) -> dict[str, Any] | None:
        try:
            found = self._engine.ask("GET", f"/images/{name}/json")
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        return dict(found)

    def _mark(self, image_id: str) -> Path | None:
        return None if self._folder is None else self._folder / image_id.removeprefix("sha256:")


def _is(found: dict[str, Any], image_id: str) -> bool:
    """Say whether the engine speaks of this image: another may be tagged `sha256:...`."""
    return str(found["Id"]).removeprefix("sha256:") == image_id.removeprefix("sha256:")
