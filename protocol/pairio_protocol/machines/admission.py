"""What a worker takes: whether it may run something, has what it needs, and a place for it.

Nothing here changes anything; the same questions are asked again of a run that a restart of the
node left going.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pairio_protocol.allowlist import Folded
from pairio_protocol.apps import Needs, code_of, find_processor
from pairio_protocol.context import Context
from pairio_protocol.errors import DefinitionError
from pairio_protocol.fold import RequestState, Resolution, ServiceFold
from pairio_protocol.limits import BACKLOG_PER_SLOT_MAX, TASKS_MAX
from pairio_protocol.machines.leases import Lease
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.machines.owner import Owner
from pairio_protocol.machines.tasks import Refusal, Task
from pairio_protocol.messages import Award
from pairio_protocol.open_submit import GUESTS, OpenSubmit
from pairio_protocol.policy import CONTAINER_ISOLATION, ISOLATIONS, isolation_stated

__all__ = ["Admission"]


class Admission:
    """The door of a worker. `tasks` are those that it has, as they are at each question."""

    def __init__(
        self,
        ctx: Context,
        membership: MembershipView,
        owner: Owner,
        fold: Callable[[str], ServiceFold],
        tasks: Mapping[str, Task],
    ) -> None:
        self._ctx = ctx
        self._membership = membership
        self._owner = owner
        self._fold = fold
        self._tasks = tasks

    def check(
        self, award: Award, state: RequestState, resolution: Resolution, fold: ServiceFold
    ) -> Task | Refusal:
        """Return the run as a task that is not begun, or why it is not taken."""
        config = self._ctx.config
        chain = self._membership.chains[award.service]
        if not config.compute or "compute" not in chain.now.roles_of(self._ctx.me):
            return Refusal("this node does not compute for the service")
        if state.canceled or "submit" not in chain.now.roles_of(state.author):
            return Refusal("the request is not wanted")
        if resolution.job is None or fold.run_of(state, resolution) != award.run:
            return Refusal("upstream results are not known here")
        if resolution.lacks:
            return Refusal("the content of an input is lost; it is computed again")
        if state.document["app"] not in chain.now.apps:
            return Refusal("the app was removed from the service's list")
        found = self._processor(award.service, state)
        if isinstance(found, Refusal):
            return found
        needed = self._isolation_needed(award.service, state, chain.now)
        weaker = self._refuses_isolation(found[0], needed)
        if weaker is not None:
            return weaker
        resources = state.record.resources
        for name, need, have in (
            ("CPUs", resources.cpu_millicores, config.cpu_millicores),
            ("memory MiB", resources.memory_mib, config.memory_mib),
            ("GPUs", resources.gpus, config.gpus),
        ):
            if need > have:
                return Refusal(name, str(need), str(have))
        narrower = self._owner.refusal(award.service, state)
        if narrower is not None:
            return Refusal(*narrower)
        if self._ctx.no_room is not None:
            return Refusal("block store", *self._ctx.no_room)
        submitter = self.submitter(award.service, state)
        refused = self._refuses_guest(chain.now) if submitter == GUESTS else None
        needs = Needs.of(found[0])
        has_image = "container" in found[0]  # which runs in a sandbox, or not at all
        refused = refused or self._refuses_needs(needs, award.service, state, has_image)
        if refused is not None:
            return refused
        busy = sum(task.submitter == submitter for task in self._tasks.values())
        if busy >= self.slots * (1 + BACKLOG_PER_SLOT_MAX) or len(self._tasks) >= TASKS_MAX:
            return Refusal("busy", "a free slot", f"{busy} runs of {submitter}")
        processor, bundle = found
        task = Task(award, state, resolution, processor, bundle, needed, submitter)
        task.at_ms = self._ctx.now_ms
        task.salt = fold.salt_of(state, resolution.job)
        if needs.exclusive:
            task.lease = Lease()
        return task

    def _refuses_needs(
        self, needs: Needs, service: str, state: RequestState, has_image: bool
    ) -> Refusal | None:
        """Say why a run that needs the network or secrets is not taken."""
        app = state.document["app"]
        if needs.network and not self._owner.allows_network(service, app):
            allowed = ", ".join(self._owner.networks(service)) or "none"
            return Refusal("network", "full", f"owner allows {allowed}")
        if needs.secrets and self._ctx.config.isolation == "none" and not has_image:
            return Refusal("secrets", "a sandbox", "none")
        return None

    def _refuses_guest(self, folded: Folded) -> Refusal | None:
        """Say why a stranger's run is not taken now; nothing of it waits here."""
        if not self._ctx.config.guests:
            return Refusal("this node runs nothing for guests")
        if OpenSubmit.of(folded) is None:
            return Refusal("the service is not public any more")
        if len(self._tasks) >= self.slots:
            return Refusal("busy", "a slot that no member uses", f"{len(self._tasks)} runs")
        return None

    @property
    def slots(self) -> int:
        """How many runs of one CPU go on at once."""
        slots = max(1, self._ctx.config.cpu_millicores // 1000)
        limit = self._owner.jobs_in_all_max
        return slots if limit is None else min(slots, limit)

    def submitter(self, service: str, state: RequestState) -> str:
        """Return whose share a run is taken from: the member, not one of his machines. All guests
        are one, unless a member wants the same run."""
        if state.record.sponsor_of and not self._member_wants(service, state):
            return GUESTS
        return self._membership.folded(service).member_of(state.author) or state.author

    def _member_wants(self, service: str, state: RequestState) -> bool:
        fold = self._fold(service)
        run = fold.run_of(state, fold.resolve(state.job))
        if run is None:
            return False
        wanting = fold.who_wants(run, state.job, self._ctx.unix_ms)
        return any(not other.record.sponsor_of for other in wanting)

    def _processor(self, service: str, state: RequestState) -> tuple[dict[str, Any], str] | Refusal:
        """Return the processor as it was on the list at the request's epoch."""
        folded = self._membership.chains[service].at(state.epoch)
        app = folded.apps.get(state.document["app"]) if folded else None
        if app is None:
            return Refusal("the app is not on the service's list")
        try:
            processor = find_processor(app, state.document["processor"])
        except DefinitionError as error:
            return Refusal(str(error))
        if code_of(app, processor) != state.document["code"]:
            return Refusal("the job names other code than the list")
        return processor, app["bundle"]

    def _isolation_needed(self, service: str, state: RequestState, folded: Folded) -> str:
        """Return the isolation that a run must have here. Where neither job nor service states one,
        the owner may let apps that he knows run without."""
        stated = isolation_stated(state.record, folded)
        petname = self._membership.petnames.get(service, service)
        names = {service, petname, state.document["app"], "*"}
        may_be_process = bool(names & set(self._ctx.config.allow_process))
        if not may_be_process:  # whatever others ask for: not without a sandbox on this machine
            return stated if stated == "strong" else "medium"
        return stated or "none"

    def _refuses_isolation(self, processor: dict[str, Any], needed: str) -> Refusal | None:
        """Say why a run cannot have what it asks to be run in."""
        config = self._ctx.config
        if "container" in processor:  # without its image it would be another program
            if "container" not in config.executors:
                have = ", ".join(config.executors) or "no sandbox"
                return Refusal("executor", "container", have)
            if ISOLATIONS.index(needed) > ISOLATIONS.index(CONTAINER_ISOLATION):
                return Refusal("isolation", needed, CONTAINER_ISOLATION)
        elif ISOLATIONS.index(config.isolation) < ISOLATIONS.index(needed):
            return Refusal("isolation", needed, config.isolation)
        return None
