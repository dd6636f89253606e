"""A job definition in the original's form. What is valid is decided by the node."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pairio.errors import InvalidRequest

__all__ = [
    "PairioJobDefinition",
    "PairioJobInputFile",
    "PairioJobOutputFile",
    "PairioJobParameter",
    "PairioJobRequiredResources",
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    if not TYPE_CHECKING:  # who checks types reads the fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise _mistake(type(self), error) from None


def _mistake(model: type[BaseModel], error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "it"
    value = repr(first["input"])[:100]
    message = first["msg"].removeprefix("Value error, ")
    known = ", ".join(model.model_fields)
    return InvalidRequest(f"{model.__name__}: {where}: {message} ({value})", f"fields: {known}")


class PairioJobInputFile(_Model):
    """An input: `url` is an http(s) URL, a CID, `job.get_output(name)` of another job, a file or
    folder of this machine (`pathlib.Path`, or text that begins with `/`, `./`, `../` or `~`), or
    bytes. Files and bytes are added to the node when the job is submitted: named by content."""

    name: str
    fileBaseName: str | None = None
    url: Any


class PairioJobOutputFile(_Model):
    """An output; without a fileBaseName it gets its own name."""

    name: str
    fileBaseName: str | None = None


class PairioJobParameter(_Model):
    """A parameter; None means: not given. NumPy's numbers and arrays are taken as Python's."""

    name: str
    value: str | bool | int | float | list[Any] | None = None

    @field_validator("value", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        as_list = getattr(value, "tolist", None)
        return as_list() if callable(as_list) else list(value) if type(value) is tuple else value


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
