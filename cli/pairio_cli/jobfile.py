"""`pairio submit --file`: jobs written down in YAML or JSON, one or many.

A job: `job: APP/PROCESSOR`, and as far as wanted `name, service, parameters, inputs, outputs,
resources, tags, batch, targets, secrets, skip_cache, rerun_failing`. An input is a path (from the
file's folder), a URL, a CID, `job:ID/OUTPUT`, or `step:NAME/OUTPUT`: an output of a job of the file
that has this name and stands before; or a list of these. Secrets are read from `@FILE` or
`env:VARIABLE`.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pairio._http import Api, part
from pairio._patient import PatientApi
from pairio.errors import PairioError
from pairio_cli.output import as_json, data, finished, note
from pairio_cli.secret import check_asked, file_secrets, read_secrets
from pairio_cli.submit import (
    Waiting,
    Wish,
    body_of,
    only_service,
    plan_wish,
    processor_of,
    seen_to,
)

__all__ = ["read_jobs", "submit_file"]

_FILE_SIZE_BYTES_MAX = 64 * 1024 * 1024
_PER_CALL = 1000
_EXIT_FAILED = 1
_RESOURCES = {
    "cpus": "numCpus",
    "gpus": "numGpus",
    "memory_gb": "memoryGb",
    "time_sec": "timeSec",
}
_KEYS = {
    **dict.fromkeys(("job", "name", "service", "batch"), str),
    **dict.fromkeys(("parameters", "inputs", "outputs", "resources"), dict),
    **dict.fromkeys(("tags", "targets"), list),
    **dict.fromkeys(("skip_cache", "rerun_failing"), bool),
    "secrets": object,  # looked at by `file_secrets`, which says no value
}
_HINT = "see docs/cli.md, Jobs in a file"
Named = tuple[str, Wish]


def read_jobs(file: str, usual: Wish) -> list[Named]:
    """Return (name, wish) of the jobs of a file (`-`: stdin), with what the command line says of
    all of them filled in where they say nothing.

    Raises:
        PairioError: it cannot be read, or is not as it should be; says where.
    """
    text, folder = _text(file)
    found = _parsed(text, file)
    if isinstance(found, dict) and "jobs" in found:
        unknown = sorted(set(found) - {"jobs"})
        if unknown:
            raise PairioError(f"{file}: {unknown[0]!r} beside jobs", _HINT)
        found = found["jobs"]
    entries = found if isinstance(found, list) else [found]
    jobs: list[Named] = []
    for number, entry in enumerate(entries, 1):
        name, wish = _job(entry, f"{file}: job {number}", usual, folder)
        if name and name in [other for other, _ in jobs]:
            raise PairioError(f"{file}: two jobs are named {name!r}", "name each once")
        jobs.append((name, wish))
    if not jobs:
        raise PairioError(f"{file} holds no job", _HINT)
    return jobs


def _text(file: str) -> tuple[str, Path]:
    try:
        if file == "-":
            raw, folder = sys.stdin.buffer.read(_FILE_SIZE_BYTES_MAX + 1), Path()
        else:
            with Path(file).open("rb") as opened:
                raw, folder = opened.read(_FILE_SIZE_BYTES_MAX + 1), Path(file).parent
        if len(raw) > _FILE_SIZE_BYTES_MAX:
            raise PairioError(f"{file} is larger than {_FILE_SIZE_BYTES_MAX} bytes", "split it")
        return raw.decode(), folder
    except OSError as error:
        raise PairioError(f"cannot read {file}: {error.strerror}", "name a file, or -") from None
    except UnicodeDecodeError:
        raise PairioError(f"{file} is no text", "write it in UTF-8") from None


def _parsed(text: str, file: str) -> Any:
    import json

    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError as error:
            if file.endswith(".json"):
                raise PairioError(f"{file}: {error}", "write JSON or YAML") from None
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        words = " ".join(str(error).split())[:300]
        raise PairioError(f"{file}: {words}", "write JSON or YAML") from None


def _job(entry: Any, where: str, usual: Wish, folder: Path) -> Named:
    if not isinstance(entry, dict) or not isinstance(entry.get("job"), str):
        raise PairioError(f"{where} has no `job: APP/PROCESSOR`", _HINT)
    for key, value in entry.items():
        kind = _KEYS.get(key)
        if key == "network":
            raise PairioError(
                f"{where}: the network is no choice of a job's",
                'its processor asks for it (network = "full"), the owner of a node allows it:'
                " see docs/network.md",
            )
        if kind is None:
            raise PairioError(f"{where}: {key!r} is none of {', '.join(sorted(_KEYS))}", _HINT)
        if not isinstance(value, kind):
            raise PairioError(f"{where}: {key} is {value!r}", f"write a {kind.__name__}")
    resources = dict(usual.resources)
    for key, value in entry.get("resources", {}).items():
        if key not in _RESOURCES:
            raise PairioError(f"{where}: resources: {key!r}", f"use {', '.join(_RESOURCES)}")
        resources[_RESOURCES[key]] = value
    wish = replace(
        usual,
        name=entry["job"],
        service=entry.get("service", usual.service),
        values=_values(entry.get("parameters", {}), where),
        inputs=list(_inputs(entry.get("inputs", {}), folder)),
        outputs=[f"{n}={v}" for n, v in entry.get("outputs", {}).items()],
        resources=resources,
        tags=[*usual.tags, *map(str, entry.get("tags", []))],
        batch=entry.get("batch", usual.batch),
        targets=(*usual.targets, *map(str, entry.get("targets", []))),
        skip_cache=entry.get("skip_cache", usual.skip_cache),
        rerun_failing=entry.get("rerun_failing", usual.rerun_failing),
        secrets=file_secrets(entry.get("secrets", {}), folder, where),
        secrets_if_asked=usual.secrets,
    )
    read_secrets(wish.secrets)  # what cannot be read is said before anything is submitted
    return entry.get("name", ""), wish


def _values(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Return parameters; YAML makes more of some texts than JSON can say."""
    import json

    for name, value in given.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise PairioError(
                f"{where}: parameter {name!r} is {value}, which is no text, number, list or map",
                "put it in quotes, if it is a text",
            ) from None
    return dict(given)


def _inputs(given: dict[str, Any], folder: Path) -> Iterator[str]:
    for name, value in given.items():
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield f"{name}[{number}]={_source(str(item), folder)}"
        else:
            yield f"{name}={_source(str(value), folder)}"


def _source(text: str, folder: Path) -> str:
    """Return an input's source; a path is one from the file's folder. An empty one stays it."""
    is_name = not text or "://" in text or text.startswith(("job:", "step:", "bafk", "bafy", "Qm"))
    return text if is_name else str(folder / Path(text).expanduser())


# -- submitting -----------------------------------------------------------------------------------


def submit_file(
    api: PatientApi, jobs: list[Named], waiting: Waiting, *, dry_run: bool, json: bool
) -> int:
    """Submit the jobs of a file, or plan them; print their ids in order; return the exit code."""
    _check_secrets(api, jobs)
    if len(jobs) == 1:
        wish = jobs[0][1]
        if dry_run:
            return plan_wish(api, wish, json=json)
        return seen_to(api, api.submit(body_of(api, wish)), waiting, json=json)
    if waiting.follow:
        raise PairioError("--follow shows one job, and these are many", "use --wait")
    if dry_run:
        return _plan_all(api, jobs, json=json)
    made = list(_submitted(api, jobs))
    refused = [answer["error"] for answer in made if "jobId" not in answer]
    if waiting.wait:
        made = [api.wait_for(job) if "jobId" in job else job for job in made]
    if json:
        as_json(made)
    for number, answer in enumerate(made, 1):
        if "jobId" not in answer:
            note(f"job {number} was refused: {answer['error']['message']}")
        elif not json:
            data(answer["jobId"])
    return _end(made, refused, waiting)


def _check_secrets(api: Api, jobs: list[Named]) -> None:
    """Refuse a secret of the command line that no job of the file asks for."""
    given = jobs[0][1].secrets_if_asked
    if given:
        asked: set[str] = set()
        for service, name in {(wish.service, wish.name) for _, wish in jobs}:
            processor = processor_of(api, service or only_service(api), name)
            asked |= {*(processor.get("secrets") or ())}
        check_asked(given, asked, "no job of the file")


def _end(made: list[dict[str, Any]], refused: list[dict[str, Any]], waiting: Waiting) -> int:
    jobs = [job for job in made if "jobId" in job]
    cached = sum(job["cached"] for job in jobs)
    failed = [job for job in jobs if job["status"] in ("failed", "canceled", "blocked")]
    what = "Completed" if waiting.wait and not failed else "Submitted"
    finished(f"{what} {len(jobs)} jobs, {cached} of them from the cache")
    if refused:
        note(f"error: {len(refused)} jobs were refused: {refused[0]['message']}")
        note(f"\nhint: {refused[0]['hint'] or 'mend them in the file and submit it again'}")
        return _EXIT_FAILED
    if waiting.wait and failed:
        note(f"error: {len(failed)} of {len(jobs)} jobs are {failed[0]['status']} or worse")
        note(f"\nhint: pairio job why {failed[0]['jobId'][-10:]}")
        return _EXIT_FAILED
    return 0


def _submitted(api: Api, jobs: list[Named]) -> Iterator[dict[str, Any]]:
    """Submit many in one call; where one rests on another of the file, one after the other."""
    if not any("=step:" in text for _, wish in jobs for text in wish.inputs):
        for start in range(0, len(jobs), _PER_CALL):
            bodies = [body_of(api, wish) for _, wish in jobs[start : start + _PER_CALL]]
            yield from api.submit({"jobs": bodies}, many=True)["jobs"]
        return
    known: dict[str, str] = {}
    for name, wish in jobs:
        job = api.submit(body_of(api, _with_steps(wish, known)))
        known[name] = job["jobId"]
        yield job


def _plan_all(api: Api, jobs: list[Named], *, json: bool) -> int:
    known: dict[str, str] = {}
    plans = []
    for name, wish in jobs:
        plans.append(api.call("POST", "/api/v1/jobs/plan", body_of(api, _with_steps(wish, known))))
        known[name] = plans[-1]["jobId"]
        if not json:
            data(plans[-1]["jobId"])
            note(f"{wish.name}: {plans[-1]['why']}")
    if json:
        as_json(plans)
    hits = sum(plan["isHit"] for plan in plans)
    finished(f"Nothing was submitted; {hits} of {len(plans)} are hits")
    return 0


def _with_steps(wish: Wish, known: dict[str, str]) -> Wish:
    """Return a wish whose inputs name the jobs that its steps became."""
    inputs = []
    for text in wish.inputs:
        name, _, source = text.partition("=")
        if source.startswith("step:"):
            step, _, output = source.removeprefix("step:").partition("/")
            if step not in known or not output:
                raise PairioError(
                    f"input {name!r}: {source!r} is no output of a job before it",
                    f"write step:NAME/OUTPUT; before it are: {', '.join(known) or 'none'}",
                )
            source = f"job:{known[step]}/{part(output)}"
        inputs.append(f"{name}={source}")
    return replace(wish, inputs=inputs)
