"""A CAR on disk as blocks: an index in memory, the blocks in the file."""

from pathlib import Path
from types import TracebackType

from pairio_protocol.car import CarReader
from pairio_protocol.errors import DecodeError
from pairio_protocol.evidence import Evidence
from pairio_protocol.export import unpack_export
from pairio_protocol.limits import CONTENT_BLOCKS_MAX

__all__ = ["CarFile"]

_PIECE_BYTES = 1024 * 1024


class CarFile:
    """Use as a context manager; the file is read once to the end, every block hashed.

    Raises:
        DecodeError: no CAR, or damaged. OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "CarFile":
        self._file = self._path.open("rb")
        try:
            self._roots = self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _read(self) -> tuple[str, ...]:
        reader = CarReader()
        while piece := self._file.read(_PIECE_BYTES):
            for cid, block, at in reader.feed(piece):
                self._places[cid] = (at, len(block))
            if len(self._places) > CONTENT_BLOCKS_MAX:
                raise DecodeError(f"more than {CONTENT_BLOCKS_MAX} blocks in a file")
        return reader.finish()

    def block(self, cid: str) -> bytes | None:
        """Return a block; None when the file has it not."""
        if cid not in self._places:
            return None
        at, size = self._places[cid]
        self._file.seek(at)
        return self._file.read(size)

    def evidence(self) -> Evidence:
        """Return what the file claims; DecodeError when it is no export."""
        if len(self._roots) != 1:
            raise DecodeError("not an export of pairio: it has several roots")
        return unpack_export(self._roots[0], self.block)[0]
