"""The outputs of jobs, for async programs. `_sync_output.py` is made of this file."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairio._http import part
from pairio.client._async_io import in_thread, open_content
from pairio.client._files import Part, plain_name
from pairio.errors import NotFound, PairioError

if TYPE_CHECKING:
    from pairio.client._async_job import AsyncPairioJob

__all__ = ["AsyncSpecialJobOutput"]

_DEPTH_MAX = 64


@dataclass(frozen=True)
class AsyncSpecialJobOutput:
    """An output of a job, usable as the `url` of another job's input before it exists."""

    jobId: str
    name: str
    fileBaseName: str
    _job: "AsyncPairioJob" = field(repr=False)

    @property
    def reference(self) -> str:
        """What stands in a job definition: `job:ID/NAME`."""
        return f"job:{self.jobId}/{part(self.name)}"

    @property
    def url(self) -> str | None:
        """A URL of the content on this machine, None until it exists."""
        return self._result().get("url")

    @property
    def cid(self) -> str | None:
        """The content id, None until it exists."""
        return self._result().get("cid")

    @property
    def size(self) -> int | None:
        """The size in bytes, None until it exists."""
        return self._result().get("size")

    def _result(self) -> dict[str, Any]:
        data = self._job._data
        results = [*data["outputFileResults"], *(data.get("otherFileOutputs") or [])]
        return next(r for r in results if r["name"] == self.name)

    def _chunks(self, path: str | None) -> AsyncGenerator[bytes, None]:
        return self._job._chunks(f"outputs/{part(self.name)}", {"path": path}, can_resume=True)

    async def read(self, path: str | None = None) -> bytes:
        """Return the content; of a folder, that of the file at `path` in it.

        Example:
            >>> await job.outputs["output"].read()
            b'hello'

        Raises:
            InvalidRequest: it does not exist (yet), or is a folder.
            NodeUnavailable: nobody who can be reached has it.
        """
        async with aclosing(self._chunks(path)) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def read_text(self, path: str | None = None, encoding: str = "utf-8") -> str:
        """Return the content as text; of a folder, that of the file at `path` in it.

        Example:
            >>> await job.outputs["output"].read_text()
            'hello'

        Raises:
            InvalidRequest: it does not exist (yet), is a folder, or is no text in this encoding.
        """
        data = await self.read(path)
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            raise PairioError(
                f"output {self.name!r} is no text in {encoding} ({error.reason})",
                "read() gives its bytes",
            ) from None

    async def open(self, path: str | None = None) -> BufferedReader:
        """Return the content as an open file, read by ranges as it is needed.

        It can be sought in, and given to h5py, pandas, zipfile and the like, which read only what
        they need of a large file. At most 16 MiB of it are kept in memory. Reading blocks: async
        programs do it in a thread. Of a folder it is the file at `path` in it.

        Example:
            >>> with await job.outputs["output"].open() as file:
            ...     file.read(2)
            b'he'

        Raises:
            InvalidRequest: it does not exist (yet), or is a folder.
            NodeUnavailable: nobody who can be reached has it.
        """
        client, data = self._job._client, self._job._data
        query = {"serviceName": data["serviceName"], "path": path}
        where = f"/api/v1/jobs/{data['requestId']}/outputs/{part(self.name)}"
        return await open_content(client._api, where, query, client.reconnect_s)

    async def download(
        self, destination: str | os.PathLike[str] | None = None, *, overwrite: bool = False
    ) -> Path:
        """Write the content to a file, or what lies in a folder to a new folder; return its path.

        Args:
            destination: the path; the output's file name in the present folder if not given.
            overwrite: replace a file that is there.

        Example:
            >>> (await job.outputs["output"].download("greeting.txt")).name
            'greeting.txt'

        Raises:
            PairioError: something is there already, or cannot be written.
            InvalidRequest: the output does not exist (yet).
        """
        target = Path(destination) if destination is not None else Path(plain_name(self._base))
        try:
            if not overwrite and os.path.lexists(target):
                raise PairioError(f"{target} is there already", "give another path, or overwrite")
            if await self._is_folder():
                await self._download_folder(target, "", 0)
            else:
                await self._download_file(target, None)
        except OSError as error:
            raise PairioError(f"cannot write {target}: {error.strerror}") from None
        return target

    @property
    def _base(self) -> str:
        return self.fileBaseName or self.name

    async def _is_folder(self) -> bool:
        try:
            await self.list()
        except NotFound:
            raise
        except PairioError:
            return False  # reading it says what is wrong, if it is no file either
        return True

    async def _download_file(self, target: Path, path: str | None) -> None:
        with Part(target) as file:
            async with aclosing(self._chunks(path)) as chunks:
                async for chunk in chunks:
                    await in_thread(file.write, chunk)
            file.keep()

    async def _download_folder(self, target: Path, inside: str, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise PairioError(f"output {self.name!r} has folders in folders without end")
        target.mkdir(exist_ok=depth == 0)
        for entry in await self.list(inside or None):
            name = plain_name(entry["name"])
            below = f"{inside}/{name}".lstrip("/")
            if entry["type"] == "folder":
                await self._download_folder(target / name, below, depth + 1)
            else:
                await self._download_file(target / name, below)

    async def list(self, path: str | None = None) -> list[dict[str, Any]]:
        """Return the entries of a folder: `{name, cid, type, size}`, type `file` or `folder`.

        Example:
            >>> [entry["name"] for entry in await job.outputs["folder"].list()]
            ['a.txt']

        Raises:
            InvalidRequest: it does not exist (yet), or is a file.
        """
        query = {"path": path, "format": "json"}
        answer = await self._job._get(f"outputs/{part(self.name)}", query)
        entries: list[dict[str, Any]] = answer["entries"]
        return entries
