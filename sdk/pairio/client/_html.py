"""How things look in a notebook. What came from elsewhere is escaped; only http links are ones."""

from collections.abc import Iterable
from html import escape
from typing import Any

from pairio_protocol.figures import size_text

__all__ = ["batch_html", "job_html", "progress_html", "service_html"]

_COLORS = {
    "completed": "#2e7d32",
    "failed": "#c62828",
    "blocked": "#ad6800",
    "canceled": "#757575",
    "running": "#1565c0",
    "starting": "#1565c0",
    "begun": "#1565c055",
}
_ROWS_MAX = 20


def _table(rows: Iterable[Iterable[str]], head: Iterable[str] = ()) -> str:
    """Return a table; its cells are HTML already."""
    heads = "".join(f"<th style='text-align:left'>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table>{f'<tr>{heads}</tr>' if heads else ''}{body}</table>"


def _text(value: Any) -> str:
    return escape("-" if value is None or value == "" else str(value))


def _link(url: Any, text: str) -> str:
    if not str(url or "").startswith(("http://", "https://")):
        return escape(text)
    return f'<a href="{escape(str(url), quote=True)}" target="_blank">{escape(text)}</a>'


def _status(data: dict[str, Any]) -> str:
    color = _COLORS.get(data["status"], "inherit")
    cached = " (from the cache)" if data.get("cached") else ""
    progress = data.get("progress")
    far = f" {100 * progress:.0f}%" if isinstance(progress, int | float) else ""
    return f"<b style='color:{color}'>{escape(str(data['status']))}</b>{far}{cached}"


def _size(size: Any) -> str:
    return size_text(size) if isinstance(size, int) else "-"


def job_html(data: dict[str, Any]) -> str:
    """Return a job: what it is, how it is, its outputs as links."""
    definition = data["jobDefinition"]
    parameters = ", ".join(f"{p['name']}={p['value']!r}" for p in definition["parameters"])
    rows = [
        ("Job", _link(data["jobUrl"], data["jobId"][-10:])),
        ("Status", _status(data)),
        ("Service", _text(data["serviceName"])),
        ("Processor", _text(f"{definition['appName']}/{definition['processorName']}")),
        ("Parameters", _text(parameters[:500])),
        ("Computed by", _text(data["computeNodeId"])),
    ]
    if data["error"]:
        rows.append(("Error", _text(str(data["error"])[:1000])))
    for output in data["outputFileResults"]:
        name = output["fileBaseName"] or output["name"]
        rows.append((f"Output {_text(output['name'])}", f"{_link(output['url'], name)}"))
        rows[-1] = (rows[-1][0], f"{rows[-1][1]} {_text(_size(output['size']))}")
    return _table((f"<b>{title}</b>", value) for title, value in rows)


def progress_html(progress: Any) -> str:
    """Return a bar of how far a batch is, and the counts in words."""
    total = progress.total or 1
    parts = [
        ("completed", progress.completed),
        ("failed", progress.failed + progress.refused),
        ("blocked", progress.blocked),
        ("canceled", progress.canceled),
        ("running", progress.partly),
        ("begun", progress.running + progress.starting - progress.partly),
    ]
    bars = "".join(
        f"<div style='width:{100 * count / total:.2f}%;background:{_COLORS[name]}'></div>"
        for name, count in parts
        if count
    )
    return (
        "<div style='display:flex;height:1em;width:30em;max-width:100%;background:#8884'>"
        f"{bars}</div><div>{_text(progress)}</div>"
    )


def batch_html(name: str, progress: Any, jobs: list[dict[str, Any]]) -> str:
    """Return a batch: how far it is, and its jobs, those that need looking at first."""
    ranks = ("failed", "blocked", "canceled", "running", "starting", "pending", "completed")
    shown = sorted(jobs, key=lambda data: ranks.index(data["status"]))[:_ROWS_MAX]
    rows = [
        (
            _link(data["jobUrl"], data["jobId"][-10:]),
            _status(data),
            _text(", ".join(f"{p['name']}={p['value']!r}" for p in _parameters(data))[:200]),
            _text((data["error"] or "")[:200]),
        )
        for data in shown
    ]
    more = f"<div>and {len(jobs) - len(shown)} more</div>" if len(jobs) > len(shown) else ""
    table = _table(rows, ("Job", "Status", "Parameters", "Error"))
    return f"<div><b>Batch {_text(name)}</b></div>{progress_html(progress)}{table}{more}"


def _parameters(data: dict[str, Any]) -> list[dict[str, Any]]:
    return list(data["jobDefinition"]["parameters"])


def service_html(data: dict[str, Any]) -> str:
    """Return a service: its apps and members."""
    rows = [
        (
            _text(member["name"]),
            _text(", ".join(member["roles"])),
            "yes" if member["alive"] else "no",
            "yes" if member.get("computes") else "no",
        )
        for member in data["members"][:_ROWS_MAX]
    ]
    return (
        f"<div><b>Service {_text(data['serviceName'])}</b>, apps: "
        f"{_text(', '.join(data['apps']))}</div>"
        + _table(rows, ("Member", "Roles", "Connected", "Computes"))
    )
