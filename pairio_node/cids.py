"""Which jobs made a CID, and which used it: an index over what is folded, brought up to date when
it is asked. It takes as much memory as there are outputs and inputs of jobs known here.
"""

from itertools import islice

from pairio_node.errors import UserError
from pairio_protocol.cid import CidError, as_v1
from pairio_protocol.fold import ServiceFold

__all__ = ["CidIndex"]


class _Indexed:
    """The index of one fold. What it is made of only grows: only what is new is read."""

    def __init__(self, fold: ServiceFold) -> None:
        self.fold = fold
        self.made: dict[str, set[str]] = {}  # CID -> resolved jobs
        self.used: dict[str, set[str]] = {}  # CID -> jobs, as they were asked for
        self.consoles: set[str] = set()
        self._read = [0, 0, 0]

    def catch_up(self) -> None:
        """Read what came since it was asked last."""
        fold, at = self.fold, self._read
        for result in islice(fold.results.values(), at[0], None):
            self.consoles.add(result.document.console)
            for cid, _, _ in result.document.outputs.values():
                self.made.setdefault(cid, set()).add(result.document.job)
        for job, document in islice(fold.definitions.items(), at[1], None):
            for entry in document["inputs"]:
                if "cid" in entry["source"]:
                    self.used.setdefault(entry["source"]["cid"], set()).add(job)
        for job, cids in islice(fold.substitutions, at[2], None):
            for cid in cids:
                self.used.setdefault(cid, set()).add(job)
        self._read = [len(fold.results), len(fold.definitions), len(fold.substitutions)]


class CidIndex:
    """Answers for every service; a fold that was made anew is read anew."""

    def __init__(self) -> None:
        self._services: dict[str, _Indexed] = {}

    def _indexed(self, service: str, fold: ServiceFold) -> _Indexed:
        if service not in self._services or self._services[service].fold is not fold:
            self._services[service] = _Indexed(fold)
        known = self._services[service]
        known.catch_up()
        return known

    def is_made(self, service: str, fold: ServiceFold, cid: str) -> bool:
        """Say whether a job of a service made this: an output, or a console."""
        known = self._indexed(service, fold)
        return cid in known.made or cid in known.consoles

    def jobs_with(
        self, service: str, fold: ServiceFold, output: str | None, input_: str | None
    ) -> set[str] | None:
        """Return the jobs, as they were asked for, that made `output` and used `input_`; None when
        neither is given.

        Raises:
            UserError: not a CID.
        """
        if output is None and input_ is None:
            return None
        known = self._indexed(service, fold)
        found: set[str] | None = None
        if output is not None:
            resolved = known.made.get(_cid(output), set())
            found = {job for one in resolved for job in (one, *fold.asked_as(one))}
        if input_ is not None:
            used = known.used.get(_cid(input_), set())
            found = used if found is None else found & used
        return found


def _cid(text: str) -> str:
    try:
        return as_v1(text)
    except CidError as error:
        raise UserError(
            str(error), hint="name content by its CID, as pairio job show does"
        ) from None
