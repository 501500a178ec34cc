"""Items that are found in answers, and items that wait for another attempt."""

import random

import anyio
import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch._engine import SPARE_WORKERS
from asyncfetch._model import Limits
from asyncfetch._verify import verify
from asyncfetch.testing import Fault
from tests import _things
from tests.conftest import look

pytestmark = pytest.mark.anyio


def items_in(dest):
    return asyncfetch.open_dataset(dest).items.to_pylist()


@pytest.fixture
async def archive():
    async with testing.serve() as archive:
        archive._services = (*archive._services, _things.ThingsService())
        yield archive


@pytest.fixture
async def api(archive):
    limits = Limits(concurrency=1)
    async with _things.Things(base_url=f"{archive.url}/things", limits=limits) as api:
        yield api


async def test_an_answer_that_was_cut_short_is_split(api, archive, tmp_path):
    plan = api.table("shards").plan(count=4)
    report = await asyncfetch.download(plan, tmp_path)

    # 32, 64, 96 and 128 rows, at most 32 in an answer
    assert report.items == {"ok": 1 + 2 + 4 + 4, "split": 0 + 1 + 3 + 3}
    assert report.rows == 32 + 64 + 96 + 128
    items = await look(items_in, tmp_path)
    split = [one for one in items if one["outcome"] == "split"]
    assert all(len(one["follow_up"]) == 2 and not one["rows"] for one in split)
    assert not await look(verify, tmp_path)

    asked = len(archive.log)
    await asyncfetch.download(plan, tmp_path)
    assert len(archive.log) == asked


async def test_the_rows_of_what_was_split_are_got_and_streamed(api):
    table = api.table("shards")
    got = await table.get(count=4)
    assert len({one["id"] for one in got}) == 320
    async with table.stream(count=4) as batches:
        assert sum([batch.num_rows async for batch in batches]) == 320


async def test_what_was_found_is_fed_before_the_rest_of_the_plan(api):
    longest = 0
    table = api.table("chains")
    async with table.stream(count=200) as batches:
        async for _ in batches:
            longest = max(longest, len(batches._run._found))
    # No more than is in flight at a time, in workers and in the queues before and after
    # them: of 200 chains, 192 lead to another page.
    assert longest <= 2 * batches._run.workers + SPARE_WORKERS


class Patient(random.Random):
    """Draws a wait that no test outlives."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return 1000.0


async def test_items_that_wait_for_another_attempt_keep_no_others_waiting(api, archive):
    slots = api.exchange.gate.concurrency
    waiting = slots + SPARE_WORKERS
    for number in range(waiting):
        archive.script(f"/numbers/{number}/", [Fault.reset(after=1)])
    api.exchange._rng = Patient()
    numbers = set()
    with anyio.fail_after(60):
        async with api.table("numbers").stream(count=40) as batches:
            batches._run._reached = True  # at the start of a run, nobody is patient
            async for batch in batches:
                numbers.add(batch.column("id")[0].as_py() // 1_000_000)
                if 39 in numbers:
                    break
    assert numbers == {n for n in range(waiting, 40) if n % 10 != 3}
