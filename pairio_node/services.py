"""The facade's part about services: the list, consent, apps. Used by the API and by `Node`."""

import secrets
from typing import TYPE_CHECKING, Any

from pairio_node.appdir import find_app, is_left_out, load_spec
from pairio_node.blocks.content import Content
from pairio_node.errors import NotFoundError, UserError, as_user_errors
from pairio_node.images import add_image, is_archive
from pairio_node.runner.container.runner import ContainerRunner
from pairio_node.service_views import app_view, service_view
from pairio_protocol import events as ev
from pairio_protocol.apps import validate_app

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Services"]

#: A bundle that was added stays so long, until its app is on the list.
_LISTED_S = 60.0


class Services:
    """What the API asks about services; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def id_of(self, name: str | None) -> str:
        """Return the id of a service by name or id; the only one when no name is given."""
        membership = self._node.core.membership
        taken = sorted(membership.taken_up)
        if name is None:
            living = [s for s in taken if not membership.folded(s).ended]
            taken = living or taken
            if len(taken) == 1:
                return taken[0]
            guest_of = [s for s in self._node.core.guests.services if s in membership.chains]
            if not taken and len(guest_of) == 1:
                return guest_of[0]
            names = ", ".join(membership.petnames[s] for s in taken) or "none"
            raise UserError(
                "no service was named" if taken else "this node is in no service",
                hint=f"name one of: {names}" if taken else "pairio service create NAME",
            )
        found = membership.find(name)
        if found is None:
            names = ", ".join(membership.petnames[s] for s in taken) or "none"
            raise NotFoundError(f"no service {name!r} on this node", hint=f"services here: {names}")
        return found

    def named_or_all(self, service: str | None) -> list[str]:
        """Return the ids of a service, or of all that are taken up here or asked as a guest."""
        if service:
            return [self.id_of(service)]
        return sorted(self._node.core.membership.taken_up) + sorted(self._node.core.guests.services)

    def all(self) -> list[dict[str, Any]]:
        """Return the services that are taken up here, and those in which this node is a guest."""
        core = self._node.core
        guest_of = sorted(s for s in core.guests.services if core.guests.is_known(s))
        return [service_view(core, s) for s in (*sorted(core.membership.taken_up), *guest_of)]

    def one(self, name: str) -> dict[str, Any]:
        """Return one service by name or id."""
        found = self.id_of(name)
        return {
            **service_view(self._node.core, found),
            "link": self._node.public.view(found)["link"],
        }

    def offers(self) -> list[dict[str, Any]]:
        """Return the services that name this node and wait for its owner."""
        return [service_view(self._node.core, s) for s in self._node.core.membership.offers()]

    async def create(self, name: str) -> dict[str, Any]:
        """Create a service with this node as its admin."""
        nonce = secrets.token_hex(16)
        answer = await self._node.driver.call(lambda call: ev.CreateService(call, name, nonce))
        return service_view(self._node.core, answer["service"])

    async def accept(self, name: str) -> dict[str, Any]:
        """Consent to a service; fine when it was taken up already."""
        answer = await self._node.driver.call(lambda call: ev.AcceptService(call, name))
        return service_view(self._node.core, answer["service"])

    def apps(self, service: str) -> list[dict[str, Any]]:
        """Return the apps of a service."""
        folded = self._node.core.membership.folded(self.id_of(service))
        return [app_view(app) for _, app in sorted(folded.apps.items())]

    async def _add_image(self, content: Content, image: str | None) -> dict[str, Any] | None:
        """Make an app's image content; None for a name that no engine here knows: it is recorded,
        and the app runs without."""
        if image is None:
            return None
        node = self._node
        runner = next((r for r in node.runners.holding if isinstance(r, ContainerRunner)), None)
        size_bytes_max = node.config.container.images_bytes_max
        return await add_image(content, image, runner, node.home.path / "jobs", size_bytes_max)

    async def install_app(self, service: str, source: str, image: str | None) -> dict[str, Any]:
        """Make a directory content and put the app on the list (again: updates it). With `proposal`
        set, further admins have to sign."""
        found = self.id_of(service)
        directory = find_app(source)
        content = self._node.contents.of(found)
        with self._node.contents.store.in_use.working(_LISTED_S):
            container = await self._add_image(content, image)
            spec = await load_spec(directory, self._node.runners.plain)
            added = await content.add_directory(directory, is_left_out)
        if image is not None:
            for processor in filter(_is_map, spec.get("processors", [])):
                processor |= {"container": container} if container else {}
                processor |= {} if is_archive(image) else {"image": image}
        with as_user_errors():
            app = validate_app({**spec, "bundle": added.cid})
        done = await self._node.admins.install(found, app)
        said = {key: done[key] for key in ("serviceName", "updated", "changed", "proposal")}
        return {**app_view(app), **said}


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)  # what is none is refused with the rest of the specification
