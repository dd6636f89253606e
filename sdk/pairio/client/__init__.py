"""For those who submit jobs: the names of the original, over the node on this machine.

`AsyncClient` and what belongs to it are imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from pairio.client._base import BatchProgress, Refused, Service
from pairio.client._jobs import (
    add_content,
    default_client,
    find_job,
    find_job_by_definition,
    find_jobs,
    map_jobs,
    submit,
    submit_job,
    submit_jobs,
)
from pairio.client._models import (
    PairioJobDefinition,
    PairioJobInputFile,
    PairioJobOutputFile,
    PairioJobParameter,
    PairioJobRequiredResources,
)
from pairio.client._sync_batch import Batch
from pairio.client._sync_client import Client
from pairio.client._sync_job import PairioJob
from pairio.client._sync_output import SpecialJobOutput

if TYPE_CHECKING:
    from pairio.client._async_batch import AsyncBatch
    from pairio.client._async_client import AsyncClient
    from pairio.client._async_job import AsyncPairioJob
    from pairio.client._async_output import AsyncSpecialJobOutput

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "AsyncPairioJob",
    "AsyncSpecialJobOutput",
    "Batch",
    "BatchProgress",
    "Client",
    "PairioJob",
    "PairioJobDefinition",
    "PairioJobInputFile",
    "PairioJobOutputFile",
    "PairioJobParameter",
    "PairioJobRequiredResources",
    "Refused",
    "Service",
    "SpecialJobOutput",
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

_ASYNC = {
    "AsyncBatch": "_async_batch",
    "AsyncClient": "_async_client",
    "AsyncPairioJob": "_async_job",
    "AsyncSpecialJobOutput": "_async_output",
}


def __getattr__(name: str) -> Any:
    if name in _ASYNC:
        from importlib import import_module

        return getattr(import_module(f"pairio.client.{_ASYNC[name]}"), name)
    raise AttributeError(f"module 'pairio.client' has no attribute {name!r}")
