"""A folder of content as a page for people, or as JSON (`?format=json`).

Names in a folder are whoever made it chose: escaped in the page, quoted in links, and names that
no path can have (`.`, `..`, nothing) are shown without a link.
"""

from html import escape
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from pairio_node.api.types import CONTENT_HEADERS, is_known
from pairio_node.serving import Found, Item

__all__ = ["folder_json", "folder_response"]

_STYLE = (
    "body{font:14px/1.6 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em}"
    "td{padding:.1em 1em .1em 0;white-space:pre-wrap;word-break:break-all}"
    "td.size{text-align:right;white-space:nowrap;color:#555}code{color:#555}"
)
#: As that of content, but what a link leads to may be saved.
_POLICY = CONTENT_HEADERS["Content-Security-Policy"].replace("sandbox", "sandbox allow-downloads")


def folder_response(
    request: Request, found: Found, items: list[Item], path: list[str], base: str, key: str
) -> Response:
    """Return a folder. `path` is how the reader came there, beginning with the capability's name;
    `base` the URL's path of this folder; `key` the capability, which the links carry on."""
    as_json = request.query_params.get("format") == "json"
    tag = f'W/"{found.cid}.{"json" if as_json else "page"}.1"'
    headers = {
        **CONTENT_HEADERS,
        "Content-Security-Policy": _POLICY,
        "ETag": tag,
        "Cache-Control": "private, no-cache",  # its making may change; its content never does
    }
    if is_known(request, tag):
        return Response(status_code=304, headers=headers)
    links = [_link(base, item, key) for item in items]
    if as_json:
        return JSONResponse(folder_json(found, items, path[-1], links), headers=headers)
    return HTMLResponse(_page(found, items, links, path, base, key), headers=headers)


def _link(base: str, item: Item, key: str) -> str | None:
    if item.name in ("", ".", ".."):
        return None
    return f"{base}/{quote(item.name, safe='')}?k={quote(key)}"


def folder_json(
    found: Found, items: list[Item], name: str, links: list[str | None] | None = None
) -> dict[str, object]:
    """Return a folder as JSON, with links if there are any."""
    entries: list[dict[str, object]] = [
        {
            "name": item.name,
            "cid": item.cid,
            "type": "folder" if item.is_folder else "file",
            "size": item.size_bytes,
        }
        for item in items
    ]
    for entry, link in zip(entries, links or [], strict=False):
        entry["url"] = link
    return {"name": name, "cid": found.cid, "type": "folder", "entries": entries}


def _page(
    found: Found, items: list[Item], links: list[str | None], path: list[str], base: str, key: str
) -> str:
    rows = []
    if len(path) > 1:
        up = base.rpartition("/")[0]
        rows.append(f'<tr><td><a href="{escape(f"{up}?k={quote(key)}")}">..</a></td><td></td></tr>')
    for item, link in zip(items, links, strict=True):
        shown = escape(_visible(item.name) + ("/" if item.is_folder else ""))
        name = f'<a href="{escape(link)}">{shown}</a>' if link else shown
        size = f"{item.size_bytes:,}".replace(",", "\u202f")
        rows.append(f'<tr><td>{name}</td><td class="size">{size}</td></tr>')
    title = escape(" / ".join(map(_visible, path)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p><code>{escape(found.cid)}</code>: {len(items)} entries, sizes in bytes</p>"
        f"<table>{''.join(rows)}</table></body></html>"
    )


def _visible(name: str) -> str:
    """Return a name with what cannot be seen, or turns text around, written as an escape."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
