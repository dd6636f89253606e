"""Many jobs as one, for ordinary programs.

Made of `_async_batch.py` by scripts/gen_sync_client: change that one."""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Self

from pairio._http import part
from pairio.client import _html
from pairio.client._base import BatchProgress, Refused
from pairio.client._progress import ProgressBar
from pairio.client._sync_job import PairioJob
from pairio.client._sync_output import SpecialJobOutput
from pairio.errors import WaitTimeout

if TYPE_CHECKING:
    from pairio.client._sync_client import Client

__all__ = ["Batch"]


class Batch:
    """Jobs that were submitted together: `jobs` in the order in which they were given, `refused`
    for those that the node did not take."""

    def __init__(
        self,
        client: "Client",
        batch_id: str,
        jobs: list[PairioJob],
        refused: list[Refused] | None = None,
    ) -> None:
        self.batch_id = batch_id
        self.jobs = jobs
        self.refused = refused or []
        self._client = client

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[PairioJob]:
        return iter(self.jobs)

    def __getitem__(self, index: int) -> PairioJob:
        return self.jobs[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.batch_id}, {self._counted()})"

    def _repr_html_(self) -> str:
        return _html.batch_html(self.batch_id, self._counted(), [job._data for job in self.jobs])

    def _counted(self) -> BatchProgress:
        return BatchProgress.of(self.jobs, len(self.refused))

    def progress(self) -> BatchProgress:
        """Ask how the jobs are, and return how many are in which state.

        Example:
            >>> print(batch.progress())
            2/2 done
        """
        self._client._look_at(self.jobs)
        return self._counted()

    def as_completed(self, timeout: float | None = None) -> Generator[PairioJob, None, None]:
        """Yield the jobs as they end, each once; those that have ended already first.

        Args:
            timeout: seconds in all; None: as long as it takes.

        Example:
            >>> for job in batch.as_completed(timeout=60):
            ...     print(job.status)
            completed
            completed

        Raises:
            WaitTimeout: the time is over; the jobs go on.
        """
        with closing(self._client.as_completed(self.jobs, timeout)) as jobs:
            for job in jobs:
                yield job

    def wait(
        self,
        timeout: float | None = None,
        *,
        progress: bool = False,
        raise_on_failure: bool = False,
    ) -> Self:
        """Wait until all jobs have ended; return the batch.

        Args:
            timeout: seconds to wait at most; None: as long as it takes.
            progress: show a bar meanwhile, in a notebook or on a terminal.
            raise_on_failure: raise for the first job, in their order, that did not complete.

        Example:
            >>> batch.wait(60, raise_on_failure=True)
            Batch(b, 2/2 done)

        Raises:
            WaitTimeout: the time is over; the jobs go on.
            JobFailed: a job did not complete, and `raise_on_failure`.
            RequestRefused: a job was not taken by the node, and `raise_on_failure`.
        """
        bar = ProgressBar() if progress else None
        try:
            watched = self._client._watched(self.jobs, timeout)
            with closing(watched) as changes:
                for _ in changes:
                    if bar is not None:
                        bar.show(self._counted())
        finally:
            if bar is not None:
                bar.show(self._counted(), last=True)
        if raise_on_failure:
            for refused in self.refused:
                raise refused.error
            for job in self.jobs:
                job.raise_on_failure()
        return self

    def results(self, timeout: float | None = None) -> list[dict[str, SpecialJobOutput]]:
        """Wait for all jobs and return their outputs by name, in the order of the jobs.

        Example:
            >>> [outputs["output"].size for outputs in batch.results(60)]
            [5, 5]

        Raises:
            JobFailed: a job did not complete.
            WaitTimeout: the time, in seconds, is over.
        """
        self.wait(timeout, raise_on_failure=True)
        for job in self.jobs:
            if job.lacks_outputs:
                job.refresh()
        return [job.outputs for job in self.jobs]

    def retry_failed(self, *, secrets: Mapping[str, str] | None = None) -> int:
        """Submit the jobs that failed or were canceled again, in their places; return how many.
        Those that they blocked go on when they complete.

        Args:
            secrets: values by name, for those of the jobs that ask for them; those of a job that is
                over are forgotten.

        Example:
            >>> batch.retry_failed()
            0

        Raises:
            InvalidRequest: none of the jobs asks for a secret; or one of them lacks one.
        """
        over = ("failed", "canceled")
        again = [n for n, job in enumerate(self.jobs) if job._data["status"] in over]
        jobs = self._client._submit_many_again([self.jobs[n] for n in again], secrets)
        for number, job in zip(again, jobs, strict=True):
            self.jobs[number] = job
        for job in self.jobs:
            if job._data["status"] == "blocked":
                job.refresh()
        return len(again)

    def cancel(self) -> int:
        """Withdraw all open requests of one's own in this batch; return how many they were. Runs
        that nobody else wants are ended within a second.

        Example:
            >>> batch.cancel()
            0
        """
        path = f"/api/v1/batches/{part(self.batch_id)}"
        query = {"serviceName": self.jobs[0]._data["serviceName"]} if self.jobs else {}
        answer = self._client._call("DELETE", path, None, query)
        self._client._look_at(self.jobs)
        return int(answer["canceled"])

    def wait_until_done(self, *, wait_sec: float | None = None, progress: bool = False) -> None:
        """Wait until all jobs have ended, or for `wait_sec` seconds; nothing raises.

        Example:
            >>> batch.wait_until_done(wait_sec=60)
        """
        began = time.monotonic()
        try:
            self.wait(wait_sec, progress=progress)
        except WaitTimeout:
            if wait_sec is None or time.monotonic() - began < wait_sec:
                raise
