"""A job definition in the original's form. What is valid is decided by the node."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "PairioJobDefinition",
    "PairioJobInputFile",
    "PairioJobOutputFile",
    "PairioJobParameter",
    "PairioJobRequiredResources",
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class PairioJobInputFile(_Model):
    """An input: `url` is an http(s) URL, a CID, `job.get_output(name)` of another job, or what
    `add_content(path)` gives for a file or folder of this machine."""

    name: str
    fileBaseName: str | None = None
    url: Any


class PairioJobOutputFile(_Model):
    """An output; without a fileBaseName it gets its own name."""

    name: str
    fileBaseName: str | None = None


class PairioJobParameter(_Model):
    """A parameter; None means: not given."""

    name: str
    value: str | bool | int | float | list[Any] | None = None


class PairioJobDefinition(_Model):
    """The only thing that is hashed: it decides what is computed."""

    appName: str
    processorName: str
    inputFiles: list[PairioJobInputFile] = Field(default_factory=list)
    outputFiles: list[PairioJobOutputFile] = Field(default_factory=list)
    parameters: list[PairioJobParameter] = Field(default_factory=list)
    cacheBust: str | None = None


class PairioJobRequiredResources(_Model):
    """What a run may use, at most; `timeSec` is the limit of its wall time."""

    numCpus: float = 1
    numGpus: int = 0
    memoryGb: float = 4
    timeSec: float = 3600
