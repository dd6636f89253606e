"""Calls of a node that go on when it restarts, for ordinary programs.

Made of `_async_calls.py` by scripts/gen_sync_client: change that one."""

import os
from collections.abc import Generator
from contextlib import closing
from typing import Any, Self

from pairio._http import part
from pairio._patient import RECONNECT_S, PatientApi
from pairio._sse import Event
from pairio.client._base import Service
from pairio.client._sync_io import Api
from pairio.errors import NodeNotRunning, PairioError

__all__ = ["Calls"]


class Calls:
    """A node, and what is asked of it as a whole."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        service_name: str | None = None,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        self._api = PatientApi(url, token, reconnect_s)
        self._service_name = service_name
        self._apps: dict[str, list[dict[str, Any]]] = {}

    @property
    def reconnect_s(self) -> float:
        """How many seconds a node that was there and is away is looked for."""
        return self._api.reconnect_s

    @reconnect_s.setter
    def reconnect_s(self, seconds: float) -> None:
        self._api.reconnect_s = seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the node; a later call opens others.

        Example:
            >>> client.close()
        """
        self._api.close()

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Any:
        """Make a call; while the node is away, again. All calls may be made twice: they read, name
        content by its hash, withdraw or hide what is named, or have a key."""
        return self._api.call(method, path, body, query, key)

    def _chunks(
        self, path: str, query: dict[str, Any], can_resume: bool = False
    ) -> Generator[bytes, None, None]:
        """Yield the bytes of an answer; where it can be resumed, over a restart of the node."""
        count, ends = 0, 0.0
        while True:
            api: Api = self._api
            try:
                api = self._api.apart()
                with closing(api.stream(path, query, count)) as chunks:
                    for chunk in chunks:
                        self._api.is_there()
                        count += len(chunk)
                        yield chunk
                return
            except NodeNotRunning as error:
                if count and not can_resume:
                    raise
                ends = self._api.pause(error, ends)
            finally:
                self._close_apart(api)

    def _events(self, path: str, query: dict[str, Any]) -> Generator[Event, None, None]:
        """Yield the events of a stream, on a connection of its own."""
        api = self._api.apart()
        try:
            with closing(api.events(path, query)) as events:
                for event in events:
                    self._api.is_there()
                    yield event
        finally:
            self._close_apart(api)

    def _close_apart(self, api: Api) -> None:
        if api is not self._api:
            api.close()

    def _service(self, name: str | None) -> str | None:
        return name or self._service_name or os.environ.get("PAIRIO_SERVICE_NAME") or None

    def _only_service(self) -> str:
        names = [service["serviceName"] for service in self.services()]
        if len(names) != 1:
            raise PairioError(
                "this node is in no service" if not names else "which service?",
                f"give service_name: {', '.join(names)}" if names else "pairio service create NAME",
            )
        return str(names[0])

    def services(self) -> list[Service]:
        """Return the services that this node is in.

        Example:
            >>> [service.serviceName for service in client.services()]
            ['lab']
        """
        answer = self._call("GET", "/api/v1/services")
        return [Service(service) for service in answer["services"]]

    def service(self, name: str) -> Service:
        """Return a service by name or id.

        Example:
            >>> (client.service("lab")).apps
            ['hello_world']

        Raises:
            NotFound: this node is in none of that name.
        """
        return Service(self._call("GET", f"/api/v1/services/{part(name)}"))

    def apps(self, service_name: str | None = None) -> list[dict[str, Any]]:
        """Return the apps of a service: `{appName, bundle, appSpecification}`.

        Example:
            >>> [app["appName"] for app in client.apps("lab")]
            ['hello_world']
        """
        service = self._service(service_name) or self._only_service()
        answer = self._call("GET", f"/api/v1/services/{part(service)}/apps")
        apps: list[dict[str, Any]] = answer["apps"]
        return apps

    def status(self) -> dict[str, Any]:
        """Return the state of the node: `peerId`, `services`, `peers`, `running`, ...

        Example:
            >>> (client.status())["running"]
            0
        """
        found: dict[str, Any] = self._call("GET", "/api/v1/status")
        return found
