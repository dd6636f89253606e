"""Plain pages, made on the server, every value escaped, no script. Small, to be replaced."""

import json
from html import escape
from typing import Any

__all__ = ["home_page", "job_page", "login_page"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{text-align:left;padding:.2rem 1rem .2rem 0;"
    "vertical-align:top}pre{background:#f4f4f4;padding:1rem;overflow:auto}"
)


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><body>{body}</body></html>"
    )


def login_page(path: str) -> str:
    """Return what somebody without a cookie sees."""
    job = path.removeprefix("/job/") if path.startswith("/job/") else "ID"
    return _page(
        "pairio",
        "<h1>pairio</h1><p>This page is for the owner of this node. On this machine run</p>"
        f"<pre>pairio open {escape(job)}</pre>",
    )


def _table(rows: list[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{k}<td>{v}" for k, v in rows) + "</table>"


def job_page(job: dict[str, Any], console: str) -> str:
    """Return the page of a job."""
    rows = [
        ("Status", f"<b>{escape(job['status'])}</b>" + (" (cached)" if job["cached"] else "")),
        ("Service", escape(job["serviceName"])),
        (
            "App / processor",
            escape(f"{job['jobDefinition']['appName']} / {job['jobDefinition']['processorName']}"),
        ),
        ("Computed by", escape(str(job["computeNodeId"] or "-"))),
        ("Error", escape(str(job["error"] or "-"))),
        ("Job id", f"<code>{escape(job['jobId'])}</code>"),
    ]
    outputs = "".join(
        f"<tr><td>{escape(o['name'])}<td>"
        + (
            f"<a href='{escape(o['url'], quote=True)}'>{escape(o['fileBaseName'])}</a>"
            if o["url"]
            else "not there yet"
        )
        + f"<td>{escape(str(o['size'] if o['size'] is not None else ''))}"
        for o in job["outputFileResults"]
    )
    definition = json.dumps(job["jobDefinition"], indent=2, ensure_ascii=False)
    return _page(
        f"Job {job['jobId'][-8:]}",
        f"<h1>Job {escape(job['jobId'][-8:])}</h1>{_table(rows)}"
        f"<h2>Outputs</h2><table><tr><th>Name<th>File<th>Bytes{outputs}</table>"
        f"<h2>Console</h2><pre>{escape(console)}</pre>"
        f"<h2>Definition</h2><pre>{escape(definition)}</pre>",
    )


def home_page(status: dict[str, Any], jobs: list[dict[str, Any]]) -> str:
    """Return the first page: the node and its newest jobs."""
    rows = "".join(
        f"<tr><td><a href='/job/{escape(j['jobId'])}'>{escape(j['jobId'][-8:])}</a>"
        f"<td>{escape(j['jobDefinition']['processorName'])}<td>{escape(j['status'])}"
        for j in jobs
    )
    return _page(
        "pairio",
        f"<h1>pairio</h1><p>Node <code>{escape(status['peerId'])}</code>, services: "
        f"{escape(', '.join(status['services']) or 'none')}</p>"
        f"<table><tr><th>Job<th>Processor<th>Status{rows}</table>",
    )
