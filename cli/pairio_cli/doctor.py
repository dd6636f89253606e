"""`pairio-node doctor`: what this machine lacks to run jobs, and how to mend it."""

from typing import Annotated, Any

import typer

from pairio_cli.output import as_json, data

__all__ = ["doctor", "shown"]


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine lacks to run jobs, and how to mend it. Example: pairio-node doctor

    Works whether or not the node runs. Exit code 1 when something that it needs does not hold.
    """
    import trio

    from pairio_node.doctor import examine, report
    from pairio_node.doctor_facts import gather
    from pairio_node.home import default_home

    found = report(examine(trio.run(gather, default_home())))
    if json:
        as_json(found)
    else:
        for line in shown(found):
            data(line)
    raise typer.Exit(0 if found["ok"] else 1)


def shown(found: dict[str, Any]) -> list[str]:
    """Return the report as lines for people."""
    lines = []
    for finding in found["findings"]:
        state = "ok" if finding["ok"] else "MISSING" if finding["needed"] else "note"
        lines.append(f"{state:8} {finding['check']:10} {finding['said']}")
        if finding["fix"]:
            first, *more = finding["fix"].rstrip().splitlines()
            lines.append(f"{'':19} -> {first}")
            lines += [f"{'':22} {line}".rstrip() for line in more]
    lines.append("this node can do what it is set to" if found["ok"] else "something is missing")
    return lines
