"""Why a job was a hit or a miss, what it rests on, and a program that submits it again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from pairio_cli.output import as_json, data, fail, finished, note, short, shorts
from pairio_cli.shared import JobId, Json, ServiceOption, api, part
from pairio_cli.times import clock_s
from pairio_protocol.figures import counted

__all__ = ["job_explain", "job_graph", "job_script", "show_fits", "show_plan"]

Job = dict[str, Any]


def _get(job_id: str, rest: str, **query: Any) -> Any:
    return api().call("GET", f"/api/v1/jobs/{part(job_id)}{rest}", None, query)


def show_fits(nodes: list[Job]) -> None:
    """Print what each node says to a job."""
    for node in nodes:
        said = "fits" if node["fits"] else f"{node['rule']}: needs {node['need']}"
        data(f"{node['name']}: {said}" + (f", has {node['have']}" if node["have"] else ""))


# -- explain ------------------------------------------------------------------------------------


def job_explain(
    job_id: JobId,
    other: Annotated[
        str | None, typer.Option("--with", metavar="ID", help="Compare with this job instead.")
    ] = None,
    service: ServiceOption = None,
    json: Json = False,
) -> None:
    """Say why a job was a hit or a miss. Example: pairio job explain ID"""
    found = _get(job_id, "/explain", serviceName=service, **{"with": other})
    if json:
        as_json(found)
        return
    data(found["why"])
    answer = found["answer"]
    if answer is not None:
        when = clock_s(answer["timestampFinishedSec"])
        data(f"answered by {answer['computeNodeName']}, {answer['status']} {when}")
    if found["nearest"] is not None:
        _show_nearest(found["nearest"], "compared with" if other else "nearest earlier job")
    elif not found["isHit"]:
        data("no earlier job of this processor is known here")


def _show_nearest(nearest: Job, words: str) -> None:
    when = clock_s(nearest["timestampCreatedSec"])
    by = f"by {nearest['submittedBy']}, {when}"
    data(f"{words}: {short(nearest['jobId'])} ({nearest['status']}, {by})")
    if not nearest["differences"]:
        data("  no difference: it is the same job")
    for difference in nearest["differences"]:
        this, that = _shown(difference["this"]), _shown(difference["that"])
        data(f"  {difference['field']}: {this} here, {that} there")
        if difference["field"] == "code":
            data("    the app was changed: its source, environment or executable is another")


def _shown(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# -- plans --------------------------------------------------------------------------------------


def show_plan(plan: Job) -> None:
    """Print what would become of a job: its id as data, the rest beside it."""
    data(plan["jobId"])
    definition = plan["jobDefinition"]
    note(f"{definition['appName']}/{definition['processorName']} in {plan['serviceName']!r}")
    note(plan["why"])
    if plan["isHit"]:
        note(f"  {plan['hitStatus']}, computed by {plan['computedBy'] or plan['computeNodeId']}")
    for job in plan["waitsFor"]:
        note(f"  it waits for the result of job {job}")
    nearest = plan["nearest"]
    if nearest is not None:
        note(f"nearest earlier job: {short(nearest['jobId'])} ({nearest['status']})")
        for d in nearest["differences"]:
            note(f"  {d['field']}: {_shown(d['this'])} here, {_shown(d['that'])} there")
    if not plan["isHit"]:
        fitting = [node["name"] for node in plan["nodes"] if node["fits"]]
        note(f"could run now on: {', '.join(fitting) or 'no node'}")
        for node in plan["nodes"]:
            if not node["fits"]:
                has = f", has {node['have']}" if node["have"] else ""
                note(f"  not on {node['name']}: {node['rule']}: needs {node['need']}{has}")
    if not plan["maySubmit"]:
        note("this node may not submit to the service: ask an admin for the role submit")


# -- graphs -------------------------------------------------------------------------------------


def job_graph(
    job_id: JobId,
    form: Annotated[
        str,
        typer.Option(
            "--format", click_type=click.Choice(("text", "dot", "json")), help="How it is drawn."
        ),
    ] = "text",
    service: ServiceOption = None,
    json: Json = False,
) -> None:
    """Draw a job with all it rests on. Example: pairio job graph ID --format dot"""
    graph = _get(job_id, "/graph", serviceName=service)
    if json or form == "json":
        as_json(graph)
        return
    for line in _dot(graph) if form == "dot" else _tree(graph):
        data(line)
    if not graph["isWhole"]:
        note("Not all it rests on is known here")


def _labels(graph: Job) -> dict[str, str]:
    """Return what each job of a graph is called: processor and end of its id."""
    ends = shorts(job["jobId"] for job in graph["jobs"])
    return {
        job["jobId"]: f"{job['jobDefinition']['appName']}/{job['jobDefinition']['processorName']}"
        f" {ends[job['jobId']]}"
        if job["jobDefinition"]
        else ends[job["jobId"]]
        for job in graph["jobs"]
    }


def _tree(graph: Job) -> Iterator[str]:
    """Yield the lines of a graph as a tree from the job down to what it rests on; what comes
    twice is drawn once. Without recursion, as chains may be long."""
    labels = _labels(graph)
    statuses = {job["jobId"]: job["status"] for job in graph["jobs"]}
    inputs: dict[str, list[Job]] = {}
    for edge in graph["edges"]:
        inputs.setdefault(edge["toJobId"], []).append(edge)
    drawn: set[str] = set()
    stack = [(graph["jobId"], "", "", "")]
    while stack:
        job, via, lead, below = stack.pop()
        label = labels.get(job, short(job))
        again = " (see above)" if job in drawn and inputs.get(job) else ""
        yield f"{lead}{via}{label}  {statuses.get(job, 'unknown')}{again}"
        if job in drawn:
            continue
        drawn.add(job)
        edges = inputs.get(job, [])
        for number, edge in reversed(list(enumerate(edges))):
            is_last = number == len(edges) - 1
            how = f"{edge['inputName']} <- {edge['outputName']} of "
            lead_of, below_of = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            stack.append((edge["fromJobId"], how, below + lead_of, below + below_of))


def _dot(graph: Job) -> Iterator[str]:
    labels = _labels(graph)
    yield "digraph job {"
    for job in graph["jobs"]:
        text = _quoted(f"{labels[job['jobId']]}\n{job['status']}")
        yield f"  {_quoted(job['jobId'])} [label={text}];"
    for edge in graph["edges"]:
        text = _quoted(f"{edge['outputName']} -> {edge['inputName']}")
        yield f"  {_quoted(edge['fromJobId'])} -> {_quoted(edge['toJobId'])} [label={text}];"
    yield "}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


# -- scripts ------------------------------------------------------------------------------------


def job_script(
    job_id: JobId,
    file: Annotated[Path | None, typer.Option("-o", help="File to write it to.")] = None,
    service: ServiceOption = None,
    json: Json = False,
) -> None:
    """Print a Python program that submits a job. Example: pairio job script ID -o again.py"""
    graph = _get(job_id, "/graph", serviceName=service)
    if not graph["isWhole"]:
        fail(
            "not all that the job rests on is known here",
            "ask a node where it was submitted: pairio job script there",
            1,
        )
    text = program(graph)
    told = {"jobId": graph["jobId"], "jobs": len(graph["jobs"]), "program": text}
    if file is None:
        as_json(told) if json else print(text, end="")
        return
    try:
        file.write_text(text)
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}", "name a file that you may write", 1)
    as_json({**told, "file": str(file)}) if json else data(str(file))
    finished(f"Wrote a program that submits {counted(len(graph['jobs']), 'job')}")


def program(graph: Job) -> str:
    """Return a Python program that submits the jobs of a graph, those before first, and says the
    id of the last, which is the same again. What is in it as text is written as Python literals."""
    names = {job["jobId"]: f"job{number}" for number, job in enumerate(graph["jobs"], 1)}
    last = names[graph["jobId"]]
    parts = [_HEAD.format(service=graph["serviceName"])]
    parts += [_submits(job, names) for job in graph["jobs"]]
    parts.append(_TAIL.format(last=last, job_id=graph["jobId"]))
    return "\n".join(parts)


_HEAD = '''\
"""Submits a job and all it rests on. Written by `pairio job script`."""

from pairio.client import (
    PairioJobDefinition,
    PairioJobInputFile,
    PairioJobOutputFile,
    PairioJobParameter,
    PairioJobRequiredResources,
    submit_job,
)

service_name = {service!r}
'''
_TAIL = """\
assert {last}.jobId == {job_id!r}, "an app of the service is another than it was"
print({last}.jobId)
"""


def _submits(job: Job, names: dict[str, str]) -> str:
    definition, need = job["jobDefinition"], job["requiredResources"] or {}
    lines = [f"{names[job['jobId']]} = submit_job("]
    lines.append("    service_name=service_name,")
    lines.append("    job_definition=PairioJobDefinition(")
    lines.append(f"        appName={definition['appName']!r},")
    lines.append(f"        processorName={definition['processorName']!r},")
    lines += _listed("inputFiles", [_input(entry, names) for entry in definition["inputFiles"]])
    outputs = [(o["name"], o["fileBaseName"]) for o in definition["outputFiles"]]
    made = [f"PairioJobOutputFile(name={n!r}, fileBaseName={base!r})" for n, base in outputs]
    lines += _listed("outputFiles", made)
    values = [(p["name"], p["value"]) for p in definition["parameters"]]
    given = [f"PairioJobParameter(name={name!r}, value={value!r})" for name, value in values]
    lines += _listed("parameters", given)
    if definition.get("cacheBust") is not None:
        lines.append(f"        cacheBust={definition['cacheBust']!r},")
    lines.append("    ),")
    if need:
        fields = ", ".join(f"{name}={value!r}" for name, value in need.items())
        lines.append(f"    required_resources=PairioJobRequiredResources({fields}),")
    return "\n".join([*lines, ")", ""])


def _listed(name: str, entries: list[str]) -> list[str]:
    """Return the lines of an argument that is a list; none of one that is empty."""
    rows = [f"            {entry}," for entry in entries]
    return [f"        {name}=[", *rows, "        ],"] if rows else []


def _input(entry: Job, names: dict[str, str]) -> str:
    source = repr(entry["url"])
    job, _, output = entry["url"].removeprefix("job:").partition("/")
    if entry["url"].startswith("job:") and job in names:
        source = f"{names[job]}.get_output({output!r})"
    fields = f"name={entry['name']!r}, fileBaseName={entry['fileBaseName']!r}, url={source}"
    return f"PairioJobInputFile({fields})"
