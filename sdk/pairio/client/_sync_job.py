"""Jobs, for ordinary programs.

Made of `_async_job.py` by scripts/gen_sync_client: change that one."""

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

from pairio.client._base import JobBase, Outputs
from pairio.client._sync_output import SpecialJobOutput
from pairio.errors import NodeNotRunning, WaitTimeout

if TYPE_CHECKING:
    from pairio.client._sync_client import Client

__all__ = ["PairioJob"]


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
        return self._client._api.about(self._data, what, query)

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
        self._data = self._client._api.wait_for(self._data, ends)
        if raise_on_failure and self._data["isSettled"]:
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
                ends = self._client._api.pause(error, ends)

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

    def rerun(
        self, *, skip_cache: bool = False, secrets: Mapping[str, str] | None = None
    ) -> "PairioJob":
        """Submit the same job again and return the new one: computed anew if its result is a
        failure, or in any case with `skip_cache`.

        Args:
            skip_cache: run it anew whatever its result is.
            secrets: values by name; those of a job that is over are forgotten.

        Example:
            >>> (job.rerun(skip_cache=True)).jobId == job.jobId
            True

        Raises:
            InvalidRequest: a secret that it asks for is missing, or one is given that it does not.
        """
        return self._client._submit_again(self, skip_cache, secrets)

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
