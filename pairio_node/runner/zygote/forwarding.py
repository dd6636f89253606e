"""Passes a warm job's connections on to its node. In a cold start a process in the sandbox does so
(`pairio.sdk._forward`); here the same program does it from outside, where no job reaches it.
"""

import os
import socket
import subprocess
import sys
from typing import Any

__all__ = ["Forwarding"]

_BACKLOG = 128
_END_S = 5.0


class Forwarding:
    """The process that forwards. It ends with this one."""

    def __init__(self, streams: dict[str, Any], user: int) -> None:
        """Listen in the network that this process is in, for the job there. `streams`: program,
        folder and name of the socket, port. It becomes `user` (0: it stays who it is).

        Raises:
            OSError: it cannot listen there, or be started.
        """
        lives_fd, self._end_fd = os.pipe()
        try:
            with socket.create_server(("127.0.0.1", streams["port"]), backlog=_BACKLOG) as listener:
                words = [streams["socket"], f"fd={listener.fileno()}", str(user)]
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", streams["program"], *words],
                    stdin=lives_fd,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=streams["folder"],  # the path of a socket has at most 107 bytes
                    env={"LANG": "C.UTF-8"},
                    pass_fds=[listener.fileno()],
                )
        except BaseException:
            os.close(self._end_fd)
            raise
        finally:
            os.close(lives_fd)
        self.pid = self._process.pid

    def end(self) -> None:
        """End it; called once."""
        os.close(self._end_fd)
        self._process.kill()
        self._process.wait(_END_S)
