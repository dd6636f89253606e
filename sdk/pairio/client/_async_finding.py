"""Jobs that are known already, for async programs. `_sync_finding.py` is made of this file."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pairio._http import part
from pairio.client._async_batch import AsyncBatch
from pairio.client._async_io import add_bytes, add_path, add_reference
from pairio.client._async_job import AsyncPairioJob
from pairio.client._async_watching import AsyncWatching
from pairio.client._base import Refused
from pairio.client._bodies import (
    SubmitOptions,
    file_of,
    is_web_url,
    newest_tries,
    search_query,
    source_name,
    submit_body,
    texts_of,
)
from pairio.client._models import PairioJobDefinition
from pairio.errors import NotFound, PairioError

if TYPE_CHECKING:
    from pairio.client._async_client import AsyncClient

__all__ = ["AsyncFinding"]

_JOBS = "/api/v1/jobs"


class AsyncFinding(AsyncWatching):
    """Looks jobs up, and names inputs."""

    def _job(self, data: dict[str, Any]) -> AsyncPairioJob:
        return AsyncPairioJob(cast("AsyncClient", self), data)

    def _batch(
        self, batch_id: str, jobs: list[AsyncPairioJob], refused: list[Refused] | None = None
    ) -> AsyncBatch:
        return AsyncBatch(cast("AsyncClient", self), batch_id, jobs, refused)

    async def find_job(self, job_id: str, *, service_name: str | None = None) -> AsyncPairioJob:
        """Return a job by its id, a unique end of it, or the id of a request.

        Example:
            >>> (await client.find_job(job.jobId)).status
            'completed'

        Raises:
            NotFound: the node knows none.
        """
        query = {"serviceName": self._service(service_name)}
        return self._job(await self._call("GET", f"{_JOBS}/{part(job_id)}", None, query))

    async def find_jobs(
        self,
        *,
        service_name: str | None = None,
        user: str | None = None,
        app: str | None = None,
        processor: str | None = None,
        node: str | None = None,
        batch_id: str | None = None,
        tags: str | Iterable[str] = (),
        tag: str | None = None,
        status: str | Iterable[str] | None = None,
        input: str | None = None,
        output: str | None = None,
        hidden: bool = False,
        limit: int = 100,
    ) -> list[AsyncPairioJob]:
        """Return the newest jobs that the node knows and that match, newest first.

        Args:
            service_name: of which service.
            user: who submitted it: a peer id, or the name of a member.
            app: the app's name.
            processor: the processor's name.
            node: who computed it: a peer id, or the name of a member.
            batch_id: of which batch.
            tags: texts that it has, all of them.
            tag: one such text.
            status: one of these.
            input: a CID or URL that it used.
            output: a CID or URL that it made.
            hidden: deleted ones too.
            limit: how many at most.

        Example:
            >>> [job.status for job in await client.find_jobs(status="completed", limit=1)]
            ['completed']

        Raises:
            InvalidRequest: a filter cannot be.
        """
        query = search_query(
            serviceName=self._service(service_name),
            userId=user,
            appName=app,
            processorName=processor,
            computeClientId=node,
            batchId=batch_id,
            tag=[*texts_of(tags), *texts_of(tag)],
            status=texts_of(status),
            input=input,
            output=output,
            hidden=hidden or None,
        )
        found: list[AsyncPairioJob] = []
        cursor = None
        while len(found) < limit:
            page = {**query, "limit": min(limit - len(found), 1000), "cursor": cursor}
            answer = await self._call("GET", _JOBS, None, page)
            found += [self._job(data) for data in answer["jobs"]]
            cursor = answer.get("nextCursor")
            if cursor is None:
                break
        return found

    async def find_job_by_definition(
        self, job_definition: PairioJobDefinition, *, service_name: str | None = None
    ) -> AsyncPairioJob | None:
        """Return the job of a definition if anybody asked for it, without submitting it; one that
        has completed rather than others. None: nobody whom this node can ask knows of one.

        Example:
            >>> definition = PairioJobDefinition(
            ...     appName="hello_world", processorName="hello_world_2"
            ... )
            >>> await client.find_job_by_definition(definition) is None
            True

        Raises:
            InvalidRequest, NotFound: there can be no such job.
        """
        urls = await self._sources([job_definition], False)
        service = self._service(service_name)
        body = submit_body(job_definition, urls, service, SubmitOptions())
        asked = {"serviceName": service, "jobDefinition": body["jobDefinition"]}
        answer = await self._call("POST", f"{_JOBS}/find", asked)
        return None if answer["job"] is None else self._job(answer["job"])

    async def batch(self, batch_id: str, *, service_name: str | None = None) -> AsyncBatch:
        """Return the jobs of a batch that were submitted before, in the order of submission; of
        those that were submitted again after a failure the new ones.

        Example:
            >>> len(await client.batch("b"))
            1

        Raises:
            NotFound: the node knows none.
        """
        jobs = await self.find_jobs(batch_id=batch_id, service_name=service_name, limit=100_000)
        if not jobs:
            raise NotFound(
                f"no job of batch {batch_id!r} on this node", "find_jobs()", "not_found", 404
            )
        return self._batch(batch_id, newest_tries(jobs)[::-1])

    async def add_content(self, path: str | Path, *, nocopy: bool = False) -> str:
        """Add a file or folder of this machine to the node; return what to give as an input's
        `url`. With `nocopy` it is hashed where it lies, and must stay as it is.

        Example:
            >>> await client.add_content("README.md")
            'ipfs://bafkadded'

        Raises:
            PairioError: there is none, or a folder holds what is neither file nor folder.
        """
        add = add_reference if nocopy else add_path
        return f"ipfs://{(await add(self._api, Path(path)))['cid']}"

    async def pin_url(self, url: str) -> str:
        """Let the node fetch an https URL now; return what names the content as an input's `url`.

        Example:
            >>> await client.pin_url("https://example.org/data.csv")
            'ipfs://bafkadded'

        Raises:
            InvalidRequest, NotAllowed: it cannot be had, or the node's owner does not allow it.
        """
        answer = await self._call("POST", "/api/v1/content/urls", {"url": url})
        return f"ipfs://{answer['cid']}"

    async def _sources(
        self, definitions: list[PairioJobDefinition], pin_inputs: bool
    ) -> dict[str, str]:
        """Add local files, bytes and, if wanted, what is behind URLs, each once; return what names
        them by what was given."""
        urls: dict[str, str] = {}
        for definition in definitions:
            for entry in definition.inputFiles:
                name, path = source_name(entry.url), file_of(entry.url)
                if name in urls:
                    continue
                if isinstance(entry.url, bytes):
                    urls[name] = f"ipfs://{(await add_bytes(self._api, entry.url))['cid']}"
                elif path is not None:
                    urls[name] = await self.add_content(path)
                elif pin_inputs and is_web_url(entry.url):
                    urls[name] = await self.pin_url(entry.url)
        return urls

    async def _processor(self, name: str, service_name: str | None) -> dict[str, Any]:
        """Return the specification of `APP/PROCESSOR`, with `appName`."""
        app_name, slash, processor_name = name.partition("/")
        if not slash or not processor_name:
            raise PairioError(f"{name!r} names no processor", "write APP/PROCESSOR")
        service = self._service(service_name) or await self._only_service()
        for is_fresh in (service not in self._apps, True):
            if is_fresh:
                self._apps[service] = await self.apps(service)
            for app in self._apps[service]:
                spec = app["appSpecification"]
                if app["appName"] == app_name:
                    for processor in spec["processors"]:
                        if processor["name"] == processor_name:
                            return {**processor, "appName": app_name}
        known = sorted(
            f"{app['appName']}/{processor['name']}"
            for app in self._apps[service]
            for processor in app["appSpecification"]["processors"]
        )
        raise NotFound(
            f"service {service!r} has no processor {name!r}",
            f"it has: {', '.join(known) or 'none'}",
            "not_found",
            404,
        )
