"""The client, for async programs. `_sync_client.py` is made of this file."""

import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from pairio._again import again_body, secret_names
from pairio._patient_async import WAIT_S
from pairio.client._async_batch import AsyncBatch
from pairio.client._async_finding import AsyncFinding
from pairio.client._async_job import AsyncPairioJob
from pairio.client._base import Refused
from pairio.client._bodies import (
    SubmitOptions,
    definitions_of,
    job_error,
    pages_of,
    submit_body,
    swept,
)
from pairio.client._models import PairioJobDefinition, PairioJobRequiredResources
from pairio.errors import InvalidRequest

__all__ = ["AsyncClient"]

_JOBS = "/api/v1/jobs"


class AsyncClient(AsyncFinding):
    """Asks one node. The client that blocks and the one for async programs have the same calls.

    Args:
        url: the node's API; else `PAIRIO_API_URL`, else the node of this machine's home.
        token: its bearer token; else `PAIRIO_API_KEY`, else the home's own.
        service_name: what calls use that name none; else `PAIRIO_SERVICE_NAME`, else the only one.
        reconnect_s: how many seconds a call goes on looking for a node that was there and is away
            (it restarts, or the machine slept). Nothing is submitted twice by that.

    Example:
        >>> async with AsyncClient() as client:
        ...     job = await client.submit("hello_world/hello_world_2", parameters={"name": "Ada"})
        ...     (await job.wait(60)).status
        'completed'

    Raises:
        NodeNotRunning: no node runs on the home.
    """

    async def submit_job(
        self,
        *,
        service_name: str | None = None,
        job_definition: PairioJobDefinition,
        required_resources: PairioJobRequiredResources | Mapping[str, float] | None = None,
        tags: list[str] | None = None,
        skip_cache: bool = False,
        rerun_failing: bool = False,
        delete_failing: bool = False,
        batch_id: str | None = None,
        target_compute_client_ids: list[str] | None = None,
        secrets: Mapping[str, str] | None = None,
        pin_inputs: bool = False,
        wait_sec: float = 0,
    ) -> AsyncPairioJob:
        """Submit a job, or find its result in the cache; returns at once, or after `wait_sec`.

        A local file (`Path`) or bytes as an input's `url` are added to the node: the job names them
        by content. An output of another job may be given before it exists.

        Args:
            service_name: may be left out when the node is in one service.
            job_definition: what to compute.
            required_resources: what a run may use: `numCpus`, `numGpus`, `memoryGb`, `timeSec`.
            tags: texts to find the job by.
            skip_cache: run it anew in any case.
            rerun_failing: run it anew if its result is a failure.
            delete_failing: as rerun_failing, and leave the failed one out of lists here; a signed
                fact is not deleted.
            batch_id: text that groups jobs.
            target_compute_client_ids: peer ids that may run it; None or `["*"]`: anyone.
            secrets: values by name that the computing node gives the job; in no record or hash.
            pin_inputs: let the node fetch https inputs now and name them by content, so that the
                job is another one when they change.
            wait_sec: wait for its end that long, as `wait_until_done` does, and in the same call.

        Example:
            >>> job = await client.submit_job(
            ...     job_definition=PairioJobDefinition(
            ...         appName="hello_world",
            ...         processorName="hello_world_2",
            ...         outputFiles=[PairioJobOutputFile(name="output")],
            ...         parameters=[PairioJobParameter(name="name", value="Ada")],
            ...     )
            ... )
            >>> job.status
            'completed'

        Raises:
            NodeNotRunning: no node answers.
            InvalidRequest, NotFound, NotAllowed: the job cannot be, or not by this node.
            PairioError: a local file cannot be read.
        """
        options = SubmitOptions(
            service_name=service_name,
            required_resources=required_resources,
            tags=tags,
            skip_cache=skip_cache,
            rerun_failing=rerun_failing,
            delete_failing=delete_failing,
            batch_id=batch_id,
            target_compute_client_ids=target_compute_client_ids,
            secrets=secrets,
            pin_inputs=pin_inputs,
        )
        urls = await self._sources([job_definition], pin_inputs)
        body = submit_body(job_definition, urls, self._service(service_name), options)
        return await self._submit_body(body, wait_sec)

    async def _submit_body(self, body: dict[str, Any], wait_sec: float) -> AsyncPairioJob:
        ends = time.monotonic() + wait_sec
        query = {"waitSec": min(wait_sec, WAIT_S)} if wait_sec > 0 else None
        job = self._job(await self._call("POST", _JOBS, body, query, _new_key()))
        if wait_sec > 0:
            await job.wait_until_done(wait_sec=ends - time.monotonic())
        return job

    async def submit(
        self,
        processor: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Mapping[str, str] | None = None,
        cache_bust: str | None = None,
        wait_sec: float = 0,
        **options: Unpack[SubmitOptions],
    ) -> AsyncPairioJob:
        """Submit a job of a processor; returns at once, or after `wait_sec`.

        Args:
            processor: `APP/PROCESSOR`.
            inputs: by name: a URL, a CID, a local file or folder (`Path`), bytes, an output of
                another job, or that job if it has one output; for an input that is a list, a list
                of these, or a batch.
            parameters: values by name; those left out have their defaults.
            outputs: file names by output; all outputs are asked for, under their own names if they
                are not given one.
            cache_bust: text that makes it another job.
            wait_sec, options: as for `submit_job`.

        Example:
            >>> job = await client.submit("hello_world/hello_world_2", parameters={"name": "Ada"})
            >>> job.status
            'completed'

        Raises:
            as `submit_job`; NotFound also for a service, app or processor that is not there.
        """
        service = options.get("service_name")
        spec = await self._processor(processor, service)
        [definition] = definitions_of(spec, [parameters or {}], inputs, outputs, cache_bust)
        return await self.submit_job(job_definition=definition, wait_sec=wait_sec, **options)

    async def submit_jobs(
        self, job_definitions: Iterable[PairioJobDefinition], **options: Unpack[SubmitOptions]
    ) -> AsyncBatch:
        """Submit many jobs at once, a thousand in a call; returns at once. They have one batch id
        (made up unless given).

        A job that the node does not take is in the batch's `refused`.

        Example:
            >>> definition = PairioJobDefinition(
            ...     appName="hello_world", processorName="hello_world_2"
            ... )
            >>> len(await client.submit_jobs([definition, definition], tags=["t"]))
            2

        Raises:
            as `submit_job`; what the node says of a job only if it takes none of them.
        """
        definitions = list(job_definitions)
        batch_id = options.get("batch_id") or f"batch-{secrets.token_hex(6)}"
        options["batch_id"] = batch_id
        urls = await self._sources(definitions, bool(options.get("pin_inputs")))
        service = self._service(options.get("service_name"))
        bodies = [submit_body(d, urls, service, options) for d in definitions]
        return await self._submit_bodies(bodies, batch_id)

    async def _submit_bodies(self, bodies: list[dict[str, Any]], batch_id: str) -> AsyncBatch:
        answers: list[dict[str, Any]] = []
        for page in pages_of(bodies):
            body = {"jobs": page}
            answer = await self._call("POST", f"{_JOBS}/batch", body, None, _new_key())
            answers += answer["jobs"]
        jobs, refused = [], []
        for number, answer in enumerate(answers):
            error = job_error(answer)
            if error is None:
                jobs.append(self._job(answer))
            else:
                refused.append(Refused(number, bodies[number]["jobDefinition"], error))
        if refused and not jobs:
            raise refused[0].error
        return self._batch(batch_id, jobs, refused)

    async def map(
        self,
        processor: str,
        parameters: Iterable[Mapping[str, Any]],
        *,
        inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None,
        outputs: Mapping[str, str] | None = None,
        cache_bust: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncBatch:
        """Submit a job of a processor for each of `parameters`; returns at once.

        Args:
            processor: `APP/PROCESSOR`.
            parameters: for each job its values by name.
            inputs: as for `submit`, the same for all jobs; or those of each, one after the other.
            outputs: as for `submit`.
            cache_bust: text that makes them other jobs.
            options: as for `submit_job`.

        Example:
            >>> names = ["Ada", "Bob"]
            >>> batch = await client.map(
            ...     "hello_world/hello_world_2", [{"name": name} for name in names]
            ... )
            >>> len(batch)
            2

        Raises:
            as `submit_jobs`.
        """
        spec = await self._processor(processor, options.get("service_name"))
        definitions = definitions_of(spec, list(parameters), inputs, outputs, cache_bust)
        return await self.submit_jobs(definitions, **options)

    async def sweep(
        self,
        processor: str,
        parameters: Mapping[str, Any],
        *,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, str] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncBatch:
        """Submit a job of a processor for every combination of values; returns at once.

        Args:
            processor: `APP/PROCESSOR`.
            parameters: by name a list of values (or a range, ...), or one value for all jobs. A
                parameter that is a list itself is given as a list of lists.
            inputs: as for `submit`, the same for all jobs.
            outputs: as for `submit`.
            options: as for `submit_job`.

        Example:
            >>> batch = await client.sweep(
            ...     "hello_world/hello_world_2", {"name": ["Ada", "Bob"]}, tags=["sweep"]
            ... )
            >>> len(batch)
            2

        Raises:
            as `submit_jobs`.
        """
        return await self.map(
            processor, swept(parameters), inputs=inputs, outputs=outputs, **options
        )

    async def _submit_again(
        self, job: AsyncPairioJob, skip_cache: bool, secrets: Mapping[str, str] | None
    ) -> AsyncPairioJob:
        body = again_body(job._data, skip_cache, secrets)
        return self._job(await self._call("POST", _JOBS, body, None, _new_key()))

    async def _submit_many_again(
        self, jobs: list[AsyncPairioJob], secrets: Mapping[str, str] | None
    ) -> list[AsyncPairioJob]:
        if not jobs:
            return []
        given = await self._shared_out(secrets or {}, [job._data for job in jobs])
        bodies = [again_body(job._data, False, own) for job, own in zip(jobs, given, strict=True)]
        batch = await self._submit_bodies(bodies, bodies[0]["batchId"])
        for refused in batch.refused:
            raise refused.error
        return batch.jobs

    async def _shared_out(
        self, secrets: Mapping[str, str], jobs: list[dict[str, Any]]
    ) -> list[dict[str, str]]:
        """Return those of the secrets that each job asks for."""
        if not secrets:
            return [{} for _ in jobs]
        services = sorted({job["serviceName"] for job in jobs})
        names = secret_names(jobs, {service: await self.apps(service) for service in services})
        asked = {name for each in names for name in each}
        for name in secrets:
            if name not in asked:
                raise InvalidRequest(
                    f"none of the jobs asks for the secret {name!r}",
                    f"asked for: {', '.join(sorted(asked)) or 'none'}",
                )
        return [{n: secrets[n] for n in each if n in secrets} for each in names]


def _new_key() -> str:
    return secrets.token_urlsafe(16)
