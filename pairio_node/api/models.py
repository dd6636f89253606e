"""What the API accepts: unknown fields are refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pairio_protocol.limits import (
    ADMINS_MAX,
    FRAME_SIZE_BYTES_MAX,
    NAME_LENGTH_MAX,
    SECRETS_PER_JOB_MAX,
    TAGS_MAX,
    TEXT_LENGTH_MAX,
)

__all__ = [
    "AdminsBody",
    "AppBody",
    "DrainBody",
    "FolderBody",
    "GrantBody",
    "JobDefinition",
    "LinkBody",
    "NameBody",
    "RenameBody",
    "RevokeBody",
    "SignBody",
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


class JobDefinition(_Body):
    """A job definition in the original's form."""

    appName: _Text  # noqa: N815
    processorName: _Text  # noqa: N815
    inputFiles: list[_InputFile] = Field(default_factory=list)  # noqa: N815
    outputFiles: list[_OutputFile] = Field(default_factory=list)  # noqa: N815
    parameters: list[_Parameter] = Field(default_factory=list)
    cacheBust: _Text | None = None  # noqa: N815


class _Resources(_Body):
    """What is left out is 1 CPU, no GPU, 1 GB, an hour; for a guest at most what it may have."""

    numCpus: float | None = Field(default=None, gt=0, le=4096)  # noqa: N815
    numGpus: int | None = Field(default=None, ge=0, le=1024)  # noqa: N815
    memoryGb: float | None = Field(default=None, gt=0, le=65536)  # noqa: N815
    timeSec: float | None = Field(default=None, gt=0, le=366 * 86400)  # noqa: N815


class SubmitBody(_Body):
    """A wish to have a job done."""

    serviceName: _Text | None = None  # noqa: N815
    jobDefinition: JobDefinition  # noqa: N815
    requiredResources: _Resources = Field(default_factory=_Resources)  # noqa: N815
    tags: list[_Short] = Field(default_factory=list, max_length=TAGS_MAX)
    skipCache: bool = False  # noqa: N815
    rerunFailing: bool = False  # noqa: N815
    deleteFailing: bool = False  # noqa: N815
    batchId: _Short = ""  # noqa: N815
    targetComputeClientIds: list[_Short] | None = Field(  # noqa: N815
        default=None, max_length=TAGS_MAX
    )
    #: Values by name, for the job alone; `repr` says none of them.
    secrets: dict[_Short, _Text] = Field(
        default_factory=dict, max_length=SECRETS_PER_JOB_MAX, repr=False
    )


class NameBody(_Body):
    """A new service."""

    name: _Text


class DrainBody(_Body):
    """How long what runs may go on before it is given up; without one, to its end."""

    waitSec: float | None = Field(default=None, ge=0, le=366 * 86_400)  # noqa: N815


class GrantBody(_Body):
    """Roles for a member (by name or key), or a key for the list."""

    who: _Text
    roles: list[_Short]
    name: _Text | None = None


class RevokeBody(_Body):
    """What is taken from a member: these roles, or his place (a key: its place)."""

    who: _Text
    roles: list[_Short] | None = None
    sinceUnixMs: int | None = Field(default=None, ge=0, lt=2**62)  # noqa: N815


class RenameBody(_Body):
    """Another name for a member; without one, for the service on this node."""

    name: _Text
    member: _Text | None = None


class AdminsBody(_Body):
    """All admins, and how many of them have to sign."""

    admins: list[_Text] = Field(max_length=ADMINS_MAX)
    threshold: int = Field(ge=1, le=ADMINS_MAX)


class SignBody(_Body):
    """A proposal to sign: by its id or a unique end of it, or as it came in a file (base64)."""

    id: _Text = ""
    data: Annotated[str, Field(max_length=2 * FRAME_SIZE_BYTES_MAX)] | None = None


class AppBody(_Body):
    """An app to install: a directory on the node's machine, or a shipped app's name."""

    source: _Text
    image: _Text | None = None


class TokenBody(_Body):
    """A token for a script."""

    name: _Short
    readOnly: bool = False  # noqa: N815
    expiresSec: int | None = Field(default=None, gt=0, le=100 * 366 * 86400)  # noqa: N815


class _FolderEntry(_Body):
    """A file that is here, under its path in the folder; without a CID an empty folder."""

    path: Annotated[str, Field(max_length=4096)]
    cid: _Text | None = None


class FolderBody(_Body):
    """A folder of files that are here."""

    entries: list[_FolderEntry]


class LinkBody(_Body):
    """A page to open once."""

    path: _Text
