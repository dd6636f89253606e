"""The files of a job as an app sees them. Standard library only: this runs inside jobs.

What costs milliseconds (shutil, tempfile) is imported when it is used.
"""

from __future__ import annotations

import json
import os
import re

TYPE_CHECKING = False  # as typing's, whose import every job would pay for
if TYPE_CHECKING:
    from typing import Any

__all__ = ["InputFile", "OutputFile", "upload_additional_job_output"]

_PART = r"^[A-Za-z0-9_-]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?$"
_ADDITIONAL_SIZE_BYTES_MAX = 1024**3


class _Schema:
    """Lets pydantic take a file class as the type of a field; contexts are never validated."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()


class InputFile(_Schema):
    """An input of the job: a file or a folder. It is there before the job starts, but for one with
    `stream` by URL: that is read by `get_url`, or whole by `download`."""

    def __init__(self, name: str, path: str | None, file_base_name: str, url: str = "") -> None:
        self.name = name
        self.url = url or _file_url(path or "")
        self.file_base_name = file_base_name
        self.local_file_name: str | None = path

    def get_url(self) -> str:
        """Return a URL under which the content can be read: `http://...`, with ranges, where the
        processor asks for `stream`, else `file://...`."""
        return self.url

    def is_local(self) -> bool:
        """Say whether the content is a file on this machine."""
        return self.local_file_name is not None

    def get_local_file_name(self) -> str | None:
        """Return the path of the content, which is read-only."""
        return self.local_file_name

    def is_folder(self) -> bool:
        """Say whether the content is a folder."""
        return self.local_file_name is not None and os.path.isdir(self.local_file_name)

    def download(self, dest_file_path: str | None = None) -> str:
        """Copy the content to `dest_file_path` (or a temporary file) and return that path.

        Of a folder, what lies in it: `dest_file_path` is made, or must be empty.
        """
        import shutil
        import tempfile

        if self.is_folder():
            dest_file_path = dest_file_path or tempfile.mkdtemp(suffix=f"-{self.file_base_name}")
            os.makedirs(dest_file_path, exist_ok=True)
            if os.listdir(dest_file_path):
                raise FileExistsError(f"the folder {dest_file_path!r} is not empty")
            _copy_folder(str(self.local_file_name), dest_file_path)
            return dest_file_path
        if dest_file_path is None:
            fd, dest_file_path = tempfile.mkstemp(suffix=f"-{self.file_base_name}")
            os.close(fd)
        if self.local_file_name is None:
            _fetch(self.url, dest_file_path)
        else:
            shutil.copyfile(self.local_file_name, dest_file_path)
        return dest_file_path


class OutputFile(_Schema):
    """An output of the job: a file or a folder. It counts once it is uploaded."""

    def __init__(self, name: str, path: str, file_base_name: str) -> None:
        self.name = name
        self.file_base_name = file_base_name
        self.was_uploaded = False
        self.size: int | None = None
        self._path = path

    def upload(self, local_file_name: str, delete_local_file: bool = True) -> None:
        """Make a local file or folder the content of this output; it is deleted by default.

        A folder may hold files and folders, no links.

        Raises:
            FileNotFoundError: there is no such file; the output stays without content.
        """
        import shutil

        if os.path.isdir(local_file_name):
            self._upload_folder(local_file_name, delete_local_file)
            return
        if not os.path.isfile(local_file_name):
            raise FileNotFoundError(
                f"output {self.name!r}: there is no file {local_file_name!r} to upload"
            )
        self.size = os.path.getsize(local_file_name)
        if delete_local_file:
            shutil.move(local_file_name, self._path)
        else:
            shutil.copyfile(local_file_name, self._path)
        self.was_uploaded = True

    def _upload_folder(self, local_folder: str, delete_local_folder: bool) -> None:
        import shutil

        self.size = sum(
            os.path.getsize(os.path.join(folder, name))
            for folder, _, names in os.walk(local_folder)
            for name in names
            if os.path.isfile(os.path.join(folder, name))
        )
        if delete_local_folder and os.path.realpath(local_folder) != os.getcwd():
            shutil.move(local_folder, self._path)
        else:
            shutil.copytree(local_folder, self._path, symlinks=True)
        self.was_uploaded = True


def _copy_folder(source: str, destination: str) -> None:
    """Copy what lies in a read-only folder into one that may be written."""
    import shutil

    for entry in os.scandir(source):
        inner = os.path.join(destination, entry.name)
        if entry.is_dir():
            os.mkdir(inner)
            _copy_folder(entry.path, inner)
        else:
            shutil.copyfile(entry.path, inner)


def _fetch(url: str, destination: str) -> None:
    """Fetch a streamed input from this job's node (OSError when it cannot be had whole)."""
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url) as answer, open(destination, "wb") as file:
            left = int(answer.headers["Content-Length"])
            while data := answer.read(min(left, 1 << 20)):
                file.write(data)
                left -= len(data)
        if left:
            raise OSError(f"the input broke off {left} bytes before its end")
    except urllib.error.HTTPError as error:
        why = error.read(2000).decode(errors="replace").strip()
        raise OSError(f"the input cannot be read: {why}") from None


def _file_url(path: str) -> str:
    if not any(c in path for c in "%#? "):
        return f"file://{path}"
    from urllib.parse import quote

    return f"file://{quote(path)}"


def upload_additional_job_output(local_file_name: str, remote_fname: str) -> str:
    """Keep a file that the spec does not declare, as `other/REMOTE_FNAME`; return that name.

    At most 1 GiB; the name has 1 to 6 parts of letters, digits, `_`, `-` and inner dots.

    Raises:
        ValueError: the name or the size is not allowed; nothing was kept.
    """
    import shutil

    parts = remote_fname.split("/")
    if not 1 <= len(parts) <= 6 or not all(re.match(_PART, part) for part in parts):
        raise ValueError(f"{remote_fname!r} is no name for an output; use parts such as a-b/c.txt")
    if os.path.getsize(local_file_name) > _ADDITIONAL_SIZE_BYTES_MAX:
        raise ValueError(f"{local_file_name} is larger than {_ADDITIONAL_SIZE_BYTES_MAX} bytes")
    with open(os.environ["PAIRIO_JOB_FILE"]) as file:
        folder = json.load(file)["additional_outputs"]
    destination = os.path.join(folder, *parts)
    os.makedirs(os.path.dirname(destination), exist_ok=True)
    shutil.copyfile(local_file_name, destination)
    return f"other/{remote_fname}"
