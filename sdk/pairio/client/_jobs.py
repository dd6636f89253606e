"""The original's functions: those of a client for the node of this machine, made when needed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

from pairio.client._bodies import SubmitOptions
from pairio.client._models import PairioJobDefinition, PairioJobRequiredResources
from pairio.client._sync_batch import Batch
from pairio.client._sync_client import Client
from pairio.client._sync_job import PairioJob

__all__ = [
    "add_content",
    "default_client",
    "find_job",
    "find_job_by_definition",
    "find_jobs",
    "map_jobs",
    "submit",
    "submit_job",
    "submit_jobs",
]

_default: Client | None = None


def default_client() -> Client:
    """Return the client that the functions of this module use.

    Raises:
        NodeNotRunning: no node runs on the home.
    """
    global _default
    if _default is None:
        _default = Client()
    return _default


def submit_job(
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
) -> PairioJob:
    """Submit a job, or find its result in the cache; returns at once. See `Client.submit_job`."""
    return default_client().submit_job(
        service_name=service_name,
        job_definition=job_definition,
        required_resources=required_resources,
        tags=tags,
        skip_cache=skip_cache,
        rerun_failing=rerun_failing,
        delete_failing=delete_failing,
        batch_id=batch_id,
        target_compute_client_ids=target_compute_client_ids,
        secrets=secrets,
        pin_inputs=pin_inputs,
        wait_sec=wait_sec,
    )


def submit(
    processor: str,
    *,
    inputs: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    outputs: Mapping[str, str] | None = None,
    cache_bust: str | None = None,
    wait_sec: float = 0,
    **options: Unpack[SubmitOptions],
) -> PairioJob:
    """Submit a job of `APP/PROCESSOR`; returns at once, or after `wait_sec`: `Client.submit`."""
    return default_client().submit(
        processor,
        inputs=inputs,
        parameters=parameters,
        outputs=outputs,
        cache_bust=cache_bust,
        wait_sec=wait_sec,
        **options,
    )


def submit_jobs(
    job_definitions: Iterable[PairioJobDefinition], **options: Unpack[SubmitOptions]
) -> Batch:
    """Submit many jobs at once; returns at once. See `Client.submit_jobs`."""
    return default_client().submit_jobs(job_definitions, **options)


def map_jobs(
    processor: str,
    parameters: Iterable[Mapping[str, Any]],
    *,
    inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None,
    outputs: Mapping[str, str] | None = None,
    cache_bust: str | None = None,
    **options: Unpack[SubmitOptions],
) -> Batch:
    """Submit a job of `APP/PROCESSOR` for each of `parameters`. See `Client.map`."""
    return default_client().map(
        processor,
        parameters,
        inputs=inputs,
        outputs=outputs,
        cache_bust=cache_bust,
        **options,
    )


def add_content(path: str | Path, *, nocopy: bool = False) -> str:
    """Add a file or folder of this machine to the node; return what to give as an input's `url`.

    With `nocopy` it is hashed where it lies, and must stay as it is.

    Raises:
        PairioError: there is none, or a folder holds what is neither file nor folder.
    """
    return default_client().add_content(path, nocopy=nocopy)


def find_job(job_id: str, *, service_name: str | None = None) -> PairioJob:
    """Return a job by id. Raises NotFound when the node knows none."""
    return default_client().find_job(job_id, service_name=service_name)


def find_job_by_definition(
    job_definition: PairioJobDefinition, *, service_name: str | None = None
) -> PairioJob | None:
    """Return the job of a definition without submitting it. See `Client.find_job_by_definition`."""
    return default_client().find_job_by_definition(job_definition, service_name=service_name)


def find_jobs(
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
) -> list[PairioJob]:
    """Return the newest jobs that the node knows and that match. See `Client.find_jobs`."""
    return default_client().find_jobs(
        service_name=service_name,
        user=user,
        app=app,
        processor=processor,
        node=node,
        batch_id=batch_id,
        tags=tags,
        tag=tag,
        status=status,
        input=input,
        output=output,
        hidden=hidden,
        limit=limit,
    )
