"""For authors of apps: `App`, `ProcessorBase`, and the files of a context.

`BaseModel` and `Field` are pydantic's; they are imported when first asked for, so that an app in
another style does not pay for them.
"""

from typing import TYPE_CHECKING, Any

from pairio.sdk._app import App, ProcessorBase
from pairio.sdk._files import InputFile, OutputFile, upload_additional_job_output
from pairio.sdk._progress import report_progress
from pairio.sdk._secrets import get_secret

if TYPE_CHECKING:
    from pydantic import BaseModel, Field

__all__ = [
    "App",
    "BaseModel",
    "Field",
    "InputFile",
    "OutputFile",
    "ProcessorBase",
    "get_secret",
    "report_progress",
    "upload_additional_job_output",
]


def __getattr__(name: str) -> Any:
    if name in ("BaseModel", "Field"):
        import pydantic

        return getattr(pydantic, name)
    raise AttributeError(f"module 'pairio.sdk' has no attribute {name!r}")
