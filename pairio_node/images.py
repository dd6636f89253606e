"""Images of apps as content: taken from a file or the engine here, fetched and loaded where a job
runs.

What becomes content is not the archive as somebody saved it but the image in it, written anew
(`clean_archive`): the same image gives the same CID, whichever engine saved it, packed or not.
"""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import trio

from pairio_node.blocks import ScopedContent
from pairio_node.blocks.content import Content
from pairio_node.errors import UserError
from pairio_node.runner.base import Runner
from pairio_node.runner.container.archive import ImageError, check_archive, clean_archive
from pairio_node.runner.container.runner import ContainerRunner
from pairio_protocol.effects import Execute

__all__ = ["RunImages", "add_image", "is_archive"]

_LIMIT_BYTES: Final = 2**42
#: An archive takes at most so much of what is free where jobs lie.
_DISK_PERCENT_MAX: Final = 90
_HINT: Final = "make it with `docker save NAME -o FILE.tar`; see docs/containers.md"


def is_archive(image: str) -> bool:
    """Say whether what `--image` names is a file here, and not an image's name."""
    return image.endswith(".tar") or image.startswith(("/", "./", "../", "~"))


async def add_image(
    content: Content, image: str, runner: ContainerRunner | None, folder: Path, size_bytes_max: int
) -> dict[str, Any] | None:
    """Make an image content: a docker-archive on this machine, or one that the engine has. Returns
    what a processor's `container` says, None for a name that no engine here knows. `folder` is for
    what is written meanwhile.

    Raises:
        UserError: there is no such file, it holds no image that is taken, it is too large.
    """
    if is_archive(image):
        return await _add(content, Path(image).expanduser(), size_bytes_max)
    if runner is None:
        return None
    with tempfile.TemporaryDirectory(prefix="image-", dir=folder) as name:
        archive = Path(name, "image.tar")
        try:
            if not await runner.save_image(image, archive):
                return None
        except (ImageError, OSError) as error:
            raise UserError(f"image {image!r} cannot be saved: {error}") from None
        return await _add(content, archive, size_bytes_max)


async def _add(content: Content, archive: Path, size_bytes_max: int) -> dict[str, Any]:
    try:
        image = await trio.to_thread.run_sync(check_archive, archive, size_bytes_max)
        added = await content.add_stream(_streamed(clean_archive(archive, image)))
    except (ImageError, OSError) as error:
        raise UserError(f"{archive} is no image that is taken: {error}", hint=_HINT) from None
    return {"archive": added.cid, "id": image.id}


async def _streamed(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await trio.to_thread.run_sync(next, pieces, None)) is not None:
        yield piece


class RunImages:
    """The images that runs of this node need: fetched like code, and handed to the engine."""

    def __init__(self, contents: ScopedContent) -> None:
        self._contents = contents
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    async def ensure(
        self,
        effect: Execute,
        folder: Path,
        runner: Runner,
        fetch: Callable[[Execute, str], Awaitable[None]],
    ) -> str:
        """Return the id of the image of a run, which the engine has then. The archive lies in the
        run's `folder` meanwhile.

        Raises:
            UserError: the image is refused.
            FetchFailed, OSError: it cannot be had.
        """
        container = effect.processor["container"]
        image_id, cid = str(container["id"]), str(container["archive"])
        if not isinstance(runner, ContainerRunner):
            raise UserError(f"{runner.name} runs no images")
        async with self._locks[image_id]:
            if not await runner.has_image(image_id):
                await fetch(effect, cid)
                archive = folder / "image.tar"
                await self._export(effect.service, cid, archive)
                try:
                    await runner.load_image(image_id, archive)
                except ImageError as error:
                    raise UserError(f"image {image_id} in {cid} is refused: {error}") from None
                await trio.to_thread.run_sync(archive.unlink)
        return image_id

    async def _export(self, service: str, cid: str, path: Path) -> None:
        """Write the archive. A few blocks can name a file without end: what is left of the disk is
        for others, too."""
        free_bytes = await trio.to_thread.run_sync(lambda: shutil.disk_usage(path.parent).free)
        limit_bytes = min(_LIMIT_BYTES, free_bytes * _DISK_PERCENT_MAX // 100)
        await self._contents.of(service).export(cid, path, limit_bytes=limit_bytes)
