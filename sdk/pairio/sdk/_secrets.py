"""The secrets of a job, as an app reads them. Standard library only: this runs inside jobs."""

import os

__all__ = ["get_secret"]


def get_secret(name: str) -> str:
    """Return a secret that the processor asks for in its `secrets`.

    Outside jobs, where somebody tries an app, it is the variable of that name.

    Raises:
        LookupError: there is none; says what to do.
    """
    folder = os.environ.get("PAIRIO_SECRETS_DIR")
    if folder is None:
        if name in os.environ:
            return os.environ[name]
        raise LookupError(f"no secret {name!r}: name it in the processor's `secrets`")
    try:
        with open(
            os.path.join(folder, os.path.basename(name)), encoding="utf-8", newline=""
        ) as file:
            return file.read()
    except FileNotFoundError:
        known = ", ".join(sorted(os.listdir(folder))) or "none"
        raise LookupError(f"no secret {name!r}; this job has: {known}") from None
