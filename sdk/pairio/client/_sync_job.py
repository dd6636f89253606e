"""Jobs and their outputs, for ordinary programs.

Made of `_async_job.py` by scripts/gen_sync_client: change that one."""

import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pairio._http import part
from pairio.client._base import JobBase, Outputs
from pairio.client._files import Part, plain_name
from pairio.client._sync_io import in_thread, open_content
from pairio.errors import NodeNotRunning, NotFound, PairioError, WaitTimeout

if TYPE_CHECKING:
    from pairio.client._sync_client import Client

__all__ = ["PairioJob", "SpecialJobOutput"]

_DEPTH_MAX = 64
_WAIT_S = 30.0


@dataclass(frozen=True)
class SpecialJobOutput:
    """An output of a job, usable as the `url` of another job's input before it exists."""

    jobId: str
    name: str
    fileBaseName: str
    _job: "PairioJob" = field(repr=False)

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

    def _chunks(self, path: str | None) -> Generator[bytes, None, None]:
        return self._job._chunks(f"outputs/{part(self.name)}", {"path": path}, can_resume=True)

    def read(self, path: str | None = None) -> bytes:
        """Return the content; of a folder, that of the file at `path` in it.

        Example:
            >>> job.outputs["output"].read()
            b'hello'

        Raises:
            InvalidRequest: it does not exist (yet), or is a folder.
            NodeUnavailable: nobody who can be reached has it.
        """
        with closing(self._chunks(path)) as chunks:
            return b"".join([chunk for chunk in chunks])

    def read_text(self, path: str | None = None, encoding: str = "utf-8") -> str:
        """Return the content as text; of a folder, that of the file at `path` in it.

        Example:
            >>> job.outputs["output"].read_text()
            'hello'

        Raises:
            InvalidRequest: it does not exist (yet), is a folder, or is no text in this encoding.
        """
        data = self.read(path)
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            raise PairioError(
                f"output {self.name!r} is no text in {encoding} ({error.reason})",
                "read() gives its bytes",
            ) from None

    def open(self, path: str | None = None) -> BufferedReader:
        """Return the content as an open file, read by ranges as it is needed.

        It can be sought in, and given to h5py, pandas, zipfile and the like, which read only what
        they need of a large file. At most 16 MiB of it are kept in memory. Reading blocks: async
        programs do it in a thread. Of a folder it is the file at `path` in it.

        Example:
            >>> with job.outputs["output"].open() as file:
            ...     file.read(2)
            b'he'

        Raises:
            InvalidRequest: it does not exist (yet), or is a folder.
            NodeUnavailable: nobody who can be reached has it.
        """
        client, data = self._job._client, self._job._data
        query = {"serviceName": data["serviceName"], "path": path}
        where = f"/api/v1/jobs/{data['requestId']}/outputs/{part(self.name)}"
        return open_content(client._api, where, query, client.reconnect_s)

    def download(
        self, destination: str | os.PathLike[str] | None = None, *, overwrite: bool = False
    ) -> Path:
        """Write the content to a file, or what lies in a folder to a new folder; return its path.

        Args:
            destination: the path; the output's file name in the present folder if not given.
            overwrite: replace a file that is there.

        Example:
            >>> (job.outputs["output"].download("greeting.txt")).name
            'greeting.txt'

        Raises:
            PairioError: something is there already, or cannot be written.
            InvalidRequest: the output does not exist (yet).
        """
        target = Path(destination) if destination is not None else Path(plain_name(self._base))
        try:
            if not overwrite and os.path.lexists(target):
                raise PairioError(f"{target} is there already", "give another path, or overwrite")
            if self._is_folder():
                self._download_folder(target, "", 0)
            else:
                self._download_file(target, None)
        except OSError as error:
            raise PairioError(f"cannot write {target}: {error.strerror}") from None
        return target

    @property
    def _base(self) -> str:
        return self.fileBaseName or self.name

    def _is_folder(self) -> bool:
        try:
            self.list()
        except NotFound:
            raise
        except PairioError:
            return False  # reading it says what is wrong, if it is no file either
        return True

    def _download_file(self, target: Path, path: str | None) -> None:
        with Part(target) as file:
            with closing(self._chunks(path)) as chunks:
                for chunk in chunks:
                    in_thread(file.write, chunk)
            file.keep()

    def _download_folder(self, target: Path, inside: str, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise PairioError(f"output {self.name!r} has folders in folders without end")
        target.mkdir(exist_ok=depth == 0)
        for entry in self.list(inside or None):
            name = plain_name(entry["name"])
            below = f"{inside}/{name}".lstrip("/")
            if entry["type"] == "folder":
                self._download_folder(target / name, below, depth + 1)
            else:
                self._download_file(target / name, below)

    def list(self, path: str | None = None) -> list[dict[str, Any]]:
        """Return the entries of a folder: `{name, cid, type, size}`, type `file` or `folder`.

        Example:
            >>> [entry["name"] for entry in job.outputs["folder"].list()]
            ['a.txt']

        Raises:
            InvalidRequest: it does not exist (yet), or is a file.
        """
        query = {"path": path, "format": "json"}
        answer = self._job._get(f"outputs/{part(self.name)}", query)
        entries: list[dict[str, Any]] = answer["entries"]
        return entries


class PairioJob(JobBase):
    """A job by one of its requests. Attributes have the original's names (`status`, `jobId`, ...).

    They are as of the last answer; `refresh` and waiting renew them.
    """

    def __init__(self, client: "Client", data: dict[str, Any]) -> None:
        super().__init__(data)
        self._client = client

    @property
    def outputs(self) -> dict[str, SpecialJobOutput]:
        """The outputs by name: those that the definition names, then others that the job made.

        Raises (when one is taken out):
            NoSuchOutput: the job has none of that name.
        """
        data = self._data
        results = [*data["outputFileResults"], *(data.get("otherFileOutputs") or [])]
        return Outputs({r["name"]: self._output(r) for r in results})

    def _output(self, result: dict[str, Any]) -> SpecialJobOutput:
        base = result.get("fileBaseName") or result["name"].rpartition("/")[2]
        return SpecialJobOutput(self._data["jobId"], result["name"], base, self)

    def get_output(self, name: str) -> SpecialJobOutput:
        """Return an output by name; it may serve as another job's input before it exists.

        Example:
            >>> job.get_output("output").size
            5

        Raises:
            NoSuchOutput: the job has none of that name.
        """
        return self.outputs[name]

    def _get(self, what: str, query: dict[str, Any]) -> Any:
        """Ask about this request; one that the node forgot (an answer from the cache is noted in
        memory only) about the job."""
        query = {"serviceName": self._data["serviceName"], **query}
        rest = f"/{what}" if what else ""
        try:
            path = f"/api/v1/jobs/{self._data['requestId']}{rest}"
            return self._client._call("GET", path, None, query)
        except NotFound:
            path = f"/api/v1/jobs/{self._data['jobId']}{rest}"
            return self._client._call("GET", path, None, query)

    def _chunks(
        self, what: str, query: dict[str, Any], can_resume: bool = False
    ) -> Generator[bytes, None, None]:
        query = {"serviceName": self._data["serviceName"], **query}
        path = f"/api/v1/jobs/{self._data['requestId']}/{what}"
        with closing(self._client._chunks(path, query, can_resume)) as chunks:
            for chunk in chunks:
                yield chunk

    def refresh(self) -> Self:
        """Ask the node for the present state.

        Example:
            >>> (job.refresh()).status
            'completed'
        """
        self._data = self._get("", {})
        return self

    def wait_until_done(
        self, *, wait_sec: float | None = None, raise_on_failure: bool = False
    ) -> None:
        """Wait until the job has ended and its result is safe, or for `wait_sec` seconds.

        A failed job does not raise, as in the original, unless `raise_on_failure`: look at `status`
        and `error`. A job is over too when it is blocked: a job whose output it needs has failed.

        Example:
            >>> job.wait_until_done(wait_sec=60)
            >>> job.status
            'completed'

        Raises:
            JobFailed: it did not complete, and `raise_on_failure`.
        """
        ends = None if wait_sec is None else time.monotonic() + wait_sec
        while not self._data["isSettled"]:
            left = _WAIT_S if ends is None else min(_WAIT_S, ends - time.monotonic())
            if left <= 0:
                return
            self._data = self._get("wait", {"timeoutSec": left})
        if raise_on_failure:
            self.raise_on_failure()

    def wait(
        self,
        timeout: float | None = None,
        *,
        raise_on_failure: bool = False,
        progress: bool = False,
    ) -> Self:
        """Wait until the job has ended and its result is safe; return the job.

        Args:
            timeout: seconds to wait at most; None: as long as it takes.
            raise_on_failure: raise if it did not complete.
            progress: show a bar meanwhile, in a notebook or on a terminal.

        Example:
            >>> (job.wait(60)).status
            'completed'

        Raises:
            WaitTimeout: the time is over; the job goes on.
            JobFailed: it did not complete, and `raise_on_failure`.
        """
        if progress:
            self._client._batch("", [self]).wait_until_done(wait_sec=timeout, progress=True)
            self.refresh()
        else:
            self.wait_until_done(wait_sec=timeout)
        if not self._data["isSettled"]:
            raise WaitTimeout(
                f"job {self._data['jobId'][-8:]} is {self._data['status']} after {timeout} s",
                "it goes on; job.why() says what it waits for",
            )
        if raise_on_failure:
            self.raise_on_failure()
        return self

    def result(self, timeout: float | None = None) -> dict[str, SpecialJobOutput]:
        """Wait for the job and return its outputs by name.

        Example:
            >>> outputs = job.result(timeout=60)
            >>> outputs["output"].read_text()
            'hello'

        Raises:
            JobFailed: it did not complete.
            WaitTimeout: the time, in seconds, is over.
        """
        self.wait(timeout, raise_on_failure=True)
        return self.outputs

    def console(self) -> str:
        """Return what the job has printed so far.

        Example:
            >>> (job.console()).splitlines()
            ['hello']
        """
        with closing(self._chunks("console", {})) as chunks:
            return b"".join([chunk for chunk in chunks]).decode(errors="replace")

    def follow(self) -> Generator[str, None, None]:
        """Yield what the job prints while it does, from its beginning until it is over; a job that
        has to be tried again prints anew. Goes on over a restart of the node.

        Example:
            >>> for text in job.follow():
            ...     print(text, end="")
            hello

        Raises:
            RequestRefused: too many consoles are followed at this node.
        """
        path = f"/api/v1/jobs/{self._data['requestId']}/console"
        query = {"serviceName": self._data["serviceName"], "follow": 1}
        ends = 0.0
        while True:
            try:
                with closing(self._client._events(path, query)) as events:
                    for event in events:
                        ends = 0.0
                        if event.kind == "output":
                            query["attempt"] = event.data["attemptId"]
                            query["offset"] = event.data["nextOffset"]
                            yield event.data["text"]
                        elif event.kind == "end":
                            self.refresh()
                            return
                raise NodeNotRunning("the node ended the console", "look whether it runs")
            except NodeNotRunning as error:
                ends = self._client._pause(error, ends)

    def cancel(self, *, all_requests: bool = False) -> Self:
        """Withdraw this request; a run that nobody else wants is ended within a second.

        Args:
            all_requests: withdraw all open requests of one's own for this job.

        Example:
            >>> (job.cancel()).status
            'canceled'
        """
        name = self._data["jobId"] if all_requests else self._data["requestId"]
        query = {"serviceName": self._data["serviceName"]}
        answer = self._client._call("POST", f"/api/v1/jobs/{name}/cancel", None, query)
        self._data = answer if answer["requestId"] == self._data["requestId"] else self._data
        return self if not all_requests else self.refresh()

    def delete(self) -> None:
        """Leave this job, which must be over, out of lists on this node. The signed facts stay: the
        result still answers the same job, and statistics count it.

        Example:
            >>> job.delete()

        Raises:
            Conflict: the job is not over.
        """
        query = {"serviceName": self._data["serviceName"]}
        path = f"/api/v1/jobs/{self._data['requestId']}"
        self._client._call("DELETE", path, None, query)

    def rerun(self, *, skip_cache: bool = False) -> "PairioJob":
        """Submit the same job again and return the new one: computed anew if its result is a
        failure, or in any case with `skip_cache`. Secrets are not known any more: submit then.

        Example:
            >>> (job.rerun(skip_cache=True)).jobId == job.jobId
            True
        """
        return self._client._submit_again(self, skip_cache)

    def why(self) -> dict[str, Any]:
        """Return why the job is where it is: `status`, `error`, `waitsFor`, `blockedBy`,
        `attempts`, and per node of the service `{name, fits, rule, need, have}`.

        Example:
            >>> (job.why())["status"]
            'completed'
        """
        found: dict[str, Any] = self._get("why", {})
        return found

    def provenance(self, format: str = "json") -> Any:
        """Return what the result rests on: jobs, results, content, who computed it with which code.

        Args:
            format: `json` (parsed), or `dot` or `in-toto` as text.

        Example:
            >>> (job.provenance())["jobs"]
            []

        Raises:
            InvalidRequest: there is no result yet.
        """
        query = {"serviceName": self._data["serviceName"], "format": format}
        path = f"/api/v1/results/{self._data['requestId']}/provenance"
        if format == "json":
            return self._client._call("GET", path, None, query)
        with closing(self._client._chunks(path, query)) as chunks:
            return b"".join([chunk for chunk in chunks]).decode()

    def link(self) -> str:
        """Return a URL that opens the job's page in a browser, once, within a minute.

        Example:
            >>> job.link()
            'http://127.0.0.1:1/open/code'
        """
        body = {"path": f"/job/{self._data['jobId']}"}
        answer = self._client._call("POST", "/api/v1/links", body)
        return str(answer["url"])
