"""How many bytes strangers are given in a second: one of them, and all together."""

import trio

__all__ = ["Rate"]


class Rate:
    """Bytes a second, with a second's worth at once after a pause."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._due_s = 0.0

    async def wait(self, size_bytes: int) -> None:
        """Return when so many bytes may be sent."""
        now_s = trio.current_time()
        due_s = max(self._due_s, now_s - 1)
        self._due_s = due_s + size_bytes / self._bytes_per_s
        if due_s > now_s:
            await trio.sleep(due_s - now_s)
