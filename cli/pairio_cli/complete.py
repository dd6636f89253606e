"""What the shell offers when somebody presses Tab: names that the node knows. Without a node, or
when it is slow, nothing is offered."""

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

__all__ = ["batches", "jobs", "members", "processors", "services"]

_TIMEOUT_S = 1.0
_JOBS = 50


def _offered(ask: Callable[[Any], Iterable[str]], begun: str) -> list[str]:
    """Return what the node answers that begins with what is typed."""
    from pairio import _http
    from pairio.errors import PairioError

    before, _http._TIMEOUT_S = _http._TIMEOUT_S, _TIMEOUT_S
    try:
        with closing(_http.Api()) as api:
            found = sorted(set(ask(api)))
    except PairioError:
        return []  # a shell that waits for a Tab has nowhere to show it
    finally:
        _http._TIMEOUT_S = before
    return [name for name in found if name.startswith(begun) and name.isprintable()]


def services(incomplete: str) -> list[str]:
    """Return names of services."""
    return _offered(
        lambda api: (s["serviceName"] for s in api.call("GET", "/api/v1/services")["services"]),
        incomplete,
    )


def processors(incomplete: str) -> list[str]:
    """Return APP/PROCESSOR of all services."""

    def ask(api: Any) -> Iterable[str]:
        from pairio._http import part

        for service in api.call("GET", "/api/v1/services")["services"]:
            path = f"/api/v1/services/{part(service['serviceName'])}/apps"
            for app in api.call("GET", path)["apps"]:
                for processor in app["appSpecification"]["processors"]:
                    yield f"{app['appName']}/{processor['name']}"

    return _offered(ask, incomplete)


def jobs(incomplete: str) -> list[str]:
    """Return ids of the newest jobs: the ends of them, or whole ones when one is begun."""

    def ask(api: Any) -> Iterable[str]:
        for job in api.call("GET", "/api/v1/jobs", None, {"limit": _JOBS})["jobs"]:
            whole = str(job["jobId"])
            yield whole if incomplete and whole.startswith(incomplete) else whole[-10:]

    return _offered(ask, incomplete)


def batches(incomplete: str) -> list[str]:
    """Return names of batches."""
    return _offered(
        lambda api: (b["batchId"] for b in api.call("GET", "/api/v1/batches")["batches"]),
        incomplete,
    )


def members(incomplete: str) -> list[str]:
    """Return names of members."""
    return _offered(
        lambda api: (n["name"] for n in api.call("GET", "/api/v1/nodes")["nodes"]), incomplete
    )
