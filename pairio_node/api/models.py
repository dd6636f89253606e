"""What the API accepts: unknown fields are refused by name."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AppBody",
    "LinkBody",
    "MemberBody",
    "NameBody",
    "SubmitBody",
    "TokenBody",
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _InputFile(_Body):
    name: str
    url: str
    fileBaseName: str | None = None  # noqa: N815 - the original's name


class _OutputFile(_Body):
    name: str
    fileBaseName: str | None = None  # noqa: N815


class _Parameter(_Body):
    name: str
    value: Any = None


class _Definition(_Body):
    appName: str  # noqa: N815
    processorName: str  # noqa: N815
    inputFiles: list[_InputFile] = Field(default_factory=list)  # noqa: N815
    outputFiles: list[_OutputFile] = Field(default_factory=list)  # noqa: N815
    parameters: list[_Parameter] = Field(default_factory=list)
    cacheBust: str | None = None  # noqa: N815


class _Resources(_Body):
    numCpus: float = Field(default=1, gt=0, le=4096)  # noqa: N815
    numGpus: int = Field(default=0, ge=0, le=1024)  # noqa: N815
    memoryGb: float = Field(default=1, gt=0, le=65536)  # noqa: N815
    timeSec: float = Field(default=3600, gt=0, le=366 * 86400)  # noqa: N815


class SubmitBody(_Body):
    """A wish to have a job done."""

    serviceName: str | None = None  # noqa: N815
    jobDefinition: _Definition  # noqa: N815
    requiredResources: _Resources = Field(default_factory=_Resources)  # noqa: N815
    tags: list[str] = Field(default_factory=list, max_length=64)
    skipCache: bool = False  # noqa: N815
    rerunFailing: bool = False  # noqa: N815
    deleteFailing: bool = False  # noqa: N815
    batchId: str = ""  # noqa: N815
    targetComputeClientIds: list[str] | None = None  # noqa: N815


class NameBody(_Body):
    """A new service."""

    name: str


class MemberBody(_Body):
    """A key for the list."""

    peerId: str  # noqa: N815
    roles: list[str]
    name: str | None = None


class AppBody(_Body):
    """An app to install: a directory on the node's machine, or a shipped app's name."""

    source: str
    image: str | None = None


class TokenBody(_Body):
    """A token for a script."""

    name: str
    readOnly: bool = False  # noqa: N815
    expiresSec: int | None = Field(default=None, gt=0)  # noqa: N815


class LinkBody(_Body):
    """A page to open once."""

    path: str
