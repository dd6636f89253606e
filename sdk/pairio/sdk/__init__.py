"""For authors of apps: `App`, `ProcessorBase`, and the files of a context.

`BaseModel` and `Field` are pydantic's. Inside a job, and in a worker that waits for one, it is
imported when it is needed, which declaring a context is not (`_declared`).
"""

from __future__ import annotations

import os
import sys

from pairio.sdk._app import App, ProcessorBase
from pairio.sdk._files import InputFile, OutputFile, upload_additional_job_output
from pairio.sdk._progress import report_progress
from pairio.sdk._secrets import get_secret

TYPE_CHECKING = False  # as typing's, whose import every job would pay for
if TYPE_CHECKING:
    from typing import Any

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
        in_job = "PAIRIO_JOB_FILE" in os.environ or "_pairio_warm" in sys.modules
        if in_job and "SPEC_OUTPUT_FILE" not in os.environ and "pydantic" not in sys.modules:
            from pairio.sdk import _declared

            return getattr(_declared, name)
        import pydantic

        return getattr(pydantic, name)
    raise AttributeError(f"module 'pairio.sdk' has no attribute {name!r}")
