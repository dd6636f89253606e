"""Finding jobs by content: who made it, who used it."""

from pathlib import Path

import pytest

from pairio_node.cids import CidIndex
from pairio_node.errors import UserError
from pairio_node.search import JobQuery
from pairio_node.transport import MemoryNetwork
from pairio_protocol.normalise import job_id_of
from pairio_protocol.records import Result
from tests.node.node_lab import three
from tests.protocol.evidence_lab import BIG, BOB, two_jobs


def test_jobs_are_found_by_what_they_made_and_used() -> None:
    lab, count, _ = two_jobs()
    fold, service, index = lab.fold, lab.chain.service, CidIndex()
    text, shouted, five = (lab.file(data)[0] for data in (b"abc", BIG, b"5"))
    first = count["inputs"][0]["source"]["job"]
    for name in fold.definitions:
        fold.resolve(name)
    assert index.jobs_with(service, fold, None, None) is None
    assert index.jobs_with(service, fold, None, text) == {first}
    assert index.jobs_with(service, fold, shouted, None) == {first}
    assert index.jobs_with(service, fold, None, shouted) == {job_id_of(count)}
    assert job_id_of(count) in (index.jobs_with(service, fold, five, None) or ())
    assert index.jobs_with(service, fold, shouted, text) == {first}
    assert index.jobs_with(service, fold, five, text) == set()
    assert index.jobs_with(service, fold, lab.file(b"?")[0], None) == set()


def test_what_comes_later_is_found_too_and_a_new_fold_is_read_anew() -> None:
    lab, _, _ = two_jobs()
    fold, service, index = lab.fold, lab.chain.service, CidIndex()
    made = lab.file(b"new")[0]
    assert index.jobs_with(service, fold, made, None) == set()
    job = lab.job("count", lab.file(b"abc")[0])
    result = Result(lab.result(job, b"new"))
    segment = lab.write(BOB, [result])
    fold.add(segment.log, segment.first_seq, segment.epoch, result, segment.hash)
    assert index.jobs_with(service, fold, made, None) == {job_id_of(job)}
    assert index.jobs_with(service, lab.fold, made, None) == {job_id_of(job)}


def test_what_is_no_cid_is_said() -> None:
    lab, _, _ = two_jobs()
    with pytest.raises(UserError, match="'nix'"):
        CidIndex().jobs_with(lab.chain.service, lab.fold, "nix", None)


async def test_a_node_lists_them(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, _, _):
        await admin.done(await admin.greet("Bob"))
        job = await admin.done(await admin.greet("Ada"))
        [output] = job["outputFileResults"]
        assert len(admin.search.newest(JobQuery())) == 2
        [found] = admin.search.newest(JobQuery(output=output["cid"]))
        assert found["jobId"] == job["jobId"]
        assert admin.search.newest(JobQuery(input_=output["cid"])) == []
