"""What the API accepts: unknown fields are refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pairio_protocol.limits import NAME_LENGTH_MAX, TAGS_MAX, TEXT_LENGTH_MAX

__all__ = [
    "AppBody",
    "LinkBody",
    "MemberBody",
    "NameBody",
    "Status",
    "SubmitBody",
    "TokenBody",
]


Status = Literal["pending", "starting", "running", "completed", "failed", "canceled", "blocked"]
# Bounded text is also checked to be Unicode: a lone surrogate has no place in a record.
_Short = Annotated[str, Field(max_length=NAME_LENGTH_MAX)]
_Text = Annotated[str, Field(max_length=TEXT_LENGTH_MAX)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _InputFile(_Body):
    name: _Text
    url: _Text
    fileBaseName: _Text | None = None  # noqa: N815 - the original's name


class _OutputFile(_Body):
    name: _Text
    fileBaseName: _Text | None = None  # noqa: N815


class _Parameter(_Body):
    name: _Text
    value: Any = None


class _Definition(_Body):
    appName: _Text  # noqa: N815
    processorName: _Text  # noqa: N815
    inputFiles: list[_InputFile] = Field(default_factory=list)  # noqa: N815
    outputFiles: list[_OutputFile] = Field(default_factory=list)  # noqa: N815
    parameters: list[_Parameter] = Field(default_factory=list)
    cacheBust: _Text | None = None  # noqa: N815


class _Resources(_Body):
    numCpus: float = Field(default=1, gt=0, le=4096)  # noqa: N815
    numGpus: int = Field(default=0, ge=0, le=1024)  # noqa: N815
    memoryGb: float = Field(default=1, gt=0, le=65536)  # noqa: N815
    timeSec: float = Field(default=3600, gt=0, le=366 * 86400)  # noqa: N815


class SubmitBody(_Body):
    """A wish to have a job done."""

    serviceName: _Text | None = None  # noqa: N815
    jobDefinition: _Definition  # noqa: N815
    requiredResources: _Resources = Field(default_factory=_Resources)  # noqa: N815
    tags: list[_Short] = Field(default_factory=list, max_length=TAGS_MAX)
    skipCache: bool = False  # noqa: N815
    rerunFailing: bool = False  # noqa: N815
    deleteFailing: bool = False  # noqa: N815
    batchId: _Short = ""  # noqa: N815
    targetComputeClientIds: list[_Short] | None = Field(  # noqa: N815
        default=None, max_length=TAGS_MAX
    )


class NameBody(_Body):
    """A new service."""

    name: _Text


class MemberBody(_Body):
    """A key for the list."""

    peerId: _Text  # noqa: N815
    roles: list[_Short]
    name: _Text | None = None


class AppBody(_Body):
    """An app to install: a directory on the node's machine, or a shipped app's name."""

    source: _Text
    image: _Text | None = None


class TokenBody(_Body):
    """A token for a script."""

    name: _Short
    readOnly: bool = False  # noqa: N815
    expiresSec: int | None = Field(default=None, gt=0, le=100 * 366 * 86400)  # noqa: N815


class LinkBody(_Body):
    """A page to open once."""

    path: _Text
