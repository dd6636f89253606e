"""For those who submit jobs: the names of the original, over the node on this machine."""

from pairio.client._jobs import (
    PairioJob,
    SpecialJobOutput,
    add_content,
    find_job,
    find_jobs,
    submit_job,
)
from pairio.client._models import (
    PairioJobDefinition,
    PairioJobInputFile,
    PairioJobOutputFile,
    PairioJobParameter,
    PairioJobRequiredResources,
)

__all__ = [
    "PairioJob",
    "PairioJobDefinition",
    "PairioJobInputFile",
    "PairioJobOutputFile",
    "PairioJobParameter",
    "PairioJobRequiredResources",
    "SpecialJobOutput",
    "add_content",
    "find_job",
    "find_jobs",
    "submit_job",
]
