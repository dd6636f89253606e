"""Who holds which inputs, as far as a coordinator knows: a run goes to the bytes where it can.

Two sources, neither of which costs a message: who submits says what it holds, and what members
answered when it asked for an input that it does not hold; and whoever made an output has it. All of
it is hints. A member that says it holds what it does not gets runs that it might get anyway, and
fetches their inputs.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable

from pairio_protocol.fold import Resolution, ServiceFold
from pairio_protocol.limits import HELD_CONTENTS_MAX, HELD_SIZE_BYTES_MIN

__all__ = ["Held", "Holdings"]

#: CID, bytes, peers.
Held = tuple[str, int, tuple[str, ...]]


class Holdings:
    """Content of which somebody said who holds it; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, tuple[str, ...]]] = OrderedDict()

    def note(self, held: Iterable[Held]) -> None:
        """Somebody holds some content; content that is too small to matter is not noted."""
        for cid, size_bytes, peers in held:
            if size_bytes >= HELD_SIZE_BYTES_MIN and peers:
                self._known[cid] = (size_bytes, peers)
                self._known.move_to_end(cid)
        while len(self._known) > HELD_CONTENTS_MAX:
            self._known.popitem(last=False)

    def of(self, resolution: Resolution, fold: ServiceFold) -> Counter[str]:
        """Return how many bytes of a job's inputs members hold; not what is too small to matter."""
        held: Counter[str] = Counter()
        if resolution.document is None or not (self._known or resolution.upstream):
            return held
        made: dict[str, tuple[int, tuple[str, ...]]] = {}
        for name in resolution.upstream:
            document = fold.results[name].document
            for cid, size_bytes, _ in document.outputs.values():
                made[cid] = (size_bytes, (document.worker,))
        for cid in {entry["source"].get("cid", "") for entry in resolution.document["inputs"]}:
            for size_bytes, peers in (self._known.get(cid, (0, ())), made.get(cid, (0, ()))):
                if size_bytes >= HELD_SIZE_BYTES_MIN:
                    held.update(dict.fromkeys(peers, size_bytes))
        return held
