"""pairio: the client API and the SDK for authors of apps.

`pairio.Client`, `pairio.submit_job` and the other names of `pairio.client` are imported when first
asked for: what runs inside jobs does not pay for them.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, whose import every job would pay for
if TYPE_CHECKING:
    from typing import Any

_OF_CLIENT = frozenset(
    (
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
    )
)


def __getattr__(name: str) -> Any:
    if name in _OF_CLIENT:
        from importlib import import_module

        return getattr(import_module("pairio.client"), name)
    raise AttributeError(f"module 'pairio' has no attribute {name!r}")
