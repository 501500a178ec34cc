"""A cancelled call leaves nothing behind, wherever the cancellation meets it.

A task factory counts the steps of every task of the client (the archive runs in another
thread), and at the n-th step the call is cancelled: for each n with ``--every-step``,
else for some of them that the seed draws.
"""

import asyncio
import gc
import random
import tempfile
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest

import asyncfetch
from asyncfetch import _threads, testing
from asyncfetch._model import ItemEnded
from asyncfetch._verify import verify
from tests.conftest import Impatient, look

pytestmark = pytest.mark.anyio

SPEECH = {"predictor_name": ["speech", "rms"], "dataset_name": "SherlockMerlin"}
SOME = 10  # instants to cancel at: some 2 s for the slowest verb on each loop


class Steps:
    """Counts the steps of tasks; at one of them, calls back once."""

    def __init__(self):
        self.count = 0
        self.at = 0
        self.then = None

    def note(self):
        self.count += 1
        if self.count == self.at:
            self.then()

    @contextmanager
    def counted(self):
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()

        def make(coro, **more):
            return asyncio.Task(self._whole(coro), **more)

        if before is None:
            loop.set_task_factory(
                lambda loop, coro, **more: make(coro, loop=loop, **more)
            )
        else:  # anyio knows eager factories by how they are made
            loop.set_task_factory(asyncio.create_eager_task_factory(make))
        try:
            yield
        finally:
            loop.set_task_factory(before)

    async def _whole(self, coro):
        return await _Stepwise(coro, self)


class _Stepwise:
    def __init__(self, coro, steps):
        self._coro = coro
        self._steps = steps

    def __await__(self):
        coro, send, value = self._coro, self._coro.send, None
        while True:
            try:
                waits_for = send(value)
            except StopIteration as end:
                return end.value
            self._steps.note()
            try:
                value, send = (yield waits_for), coro.send
            except BaseException as error:  # noqa: BLE001 - goes where it belongs
                value, send = error, coro.throw


@pytest.fixture(scope="module")
def served():
    with testing.serve_in_thread(scale=0.05) as archive:
        yield archive


@asynccontextmanager
async def leaving_nothing(archive, tmp_path, monkeypatch):
    """A client; when the block has ended, nothing of its calls may be left."""
    troubles = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: troubles.append(context))
    tasks = asyncio.all_tasks()
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    api = asyncfetch.Neuroscout(base_url=archive.neuroscout)
    api.exchange._rng = api.exchange.gate._rng = Impatient()
    try:
        yield api
    finally:
        connector = (
            api.exchange._transport._session
            and api.exchange._transport._session.connector
        )
        # A closed connection says so in the loop's next turn.
        await asyncio.sleep(0)
        assert not connector or not connector._acquired
        await api.aclose()
        gate = api.exchange.gate.statistics()
        assert gate["in_flight"] == 0
        assert gate["waiting"] == 0
        assert not list(spool.iterdir())
        decoding = _threads._decoding.get(None)
        assert decoding is None or decoding.limiter.borrowed_tokens == 0
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        assert asyncio.all_tasks() == tasks
        await asyncio.sleep(0)
        gc.collect()
        loop.set_exception_handler(None)
        assert not troubles


async def by_scope(call, steps, at):
    """Cancel from a scope around the call, as anyio does."""
    with anyio.CancelScope() as scope:
        steps.count, steps.at, steps.then = 0, at, scope.cancel
        await call()
    steps.at = 0
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    return not scope.cancelled_caught


async def by_task(call, steps, at):
    """Cancel the caller's task, as ``asyncio.timeout`` and web servers do."""
    task = asyncio.current_task()
    steps.count, steps.at, steps.then = 0, at, task.cancel
    try:
        await call()
    except asyncio.CancelledError:
        assert task.uncancel() == 0  # once, and by nobody else
        return False
    finally:
        steps.at = 0
    if task.cancelling():  # too late to be noticed: the next await would
        task.uncancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
    return True


async def get(api, _dest):
    await api.predictor_events.get(**SPEECH)


async def stream(api, _dest):
    async with api.predictor_events.stream(**SPEECH) as batches:
        async for _ in batches:
            await asyncio.sleep(0)  # the consumer holds a batch


async def download(api, dest):
    plan = api.predictor_events.plan(**SPEECH)
    report = await asyncfetch.download(plan, dest, commit_seconds=0.001)
    assert set(report.items) == {"ok"}


async def spooled(api, _dest):
    """Every body goes through a file, and is decoded in a thread."""
    await api.predictor_events.get(**SPEECH, output_type="arrow")


CALLS = {"get": get, "stream": stream, "download": download, "spooled": spooled}


def instants(config, last):
    if config.getoption("--every-step"):
        return range(1, last + 1)
    chance = random.Random(config.getoption("--seed"))
    return sorted(chance.sample(range(1, last + 1), min(last, SOME)))


@pytest.mark.parametrize("cancel", [by_scope, by_task])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.timeout(900)
async def test_cancelled_at_any_step_a_call_leaves_nothing(
    name, cancel, served, tmp_path, monkeypatch, request
):
    if name == "spooled":
        monkeypatch.setattr("asyncfetch._transport.MEMORY_LIMIT", 1000)
    call, steps = CALLS[name], Steps()
    dest = tmp_path / "whole"
    with steps.counted():
        async with leaving_nothing(served, tmp_path, monkeypatch) as api:
            await asyncio.create_task(call(api, dest))  # noqa: TID251 - counted
        last = steps.count
        for at in instants(request.config, last):
            dest = tmp_path / f"at-{at}"

            async def once(at=at, dest=dest):
                async with leaving_nothing(served, tmp_path, monkeypatch) as api:
                    await cancel(lambda: call(api, dest), steps, at)
                    if name == "download":
                        await check_dataset(api, dest)

            await asyncio.create_task(once())  # noqa: TID251 - counted


async def check_dataset(api, dest):
    if not dest.exists():
        return

    def look_inside():
        names = {path.name for path in dest.rglob("*") if path.is_file()}
        staging = dest / "_asyncfetch/tmp"
        left = list(staging.iterdir()) if staging.exists() else []
        return left, verify(dest) if "plan.json" in names else None

    left, found = await look(look_inside)
    assert not left
    assert not found
    await download(api, dest)  # nobody holds the lock: it goes on


# Consumers ----------------------------------------------------------------------------

MANY = {"dataset_name": "SherlockMerlin"}


async def breaks(api):
    async with api.predictor_events.stream(**MANY) as batches:
        async for _ in batches:
            break


async def raises(api):
    with pytest.raises(ZeroDivisionError):
        async with api.predictor_events.stream(**MANY) as batches:
            async for _ in batches:
                1 / 0  # noqa: B018


async def returns(api):
    async with api.predictor_events.stream(**MANY) as batches:
        return await batches.receive()


async def never_reads(api):
    async with api.predictor_events.stream(**MANY):
        pass


async def never_enters(api):
    api.predictor_events.stream(**MANY)


async def drops_the_stream(api):
    opened = api.predictor_events.stream(**MANY)
    batches = await opened.__aenter__()
    await batches.receive()
    del opened, batches
    gc.collect()


async def drops_it_at_once(api):
    await api.predictor_events.stream(**MANY).__aenter__()
    gc.collect()


async def breaks_out_of_a_generator(api):
    async def rows():
        async with api.predictor_events.stream(**MANY) as batches:
            async for batch in batches:
                yield batch

    async for _ in rows():
        break
    gc.collect()


async def is_cancelled_while_it_holds_a_batch(api):
    held = asyncio.Event()

    async def consume():
        async with api.predictor_events.stream(**MANY) as batches:
            await batches.receive()
            held.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(consume())  # noqa: TID251 - as users do
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def is_cancelled_twice(api):
    held = asyncio.Event()

    async def consume():
        async with api.predictor_events.stream(**MANY) as batches:
            await batches.receive()
            held.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(consume())  # noqa: TID251 - as users do
    await held.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def runs_out_of_time(api):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timer:
            async with api.predictor_events.stream(**MANY) as batches:
                async for _ in batches:
                    timer.reschedule(0)  # the loop's next turn is too late


async def leaves_it_in_another_task(api):
    opened = api.predictor_events.stream(**MANY)
    batches = await opened.__aenter__()
    await batches.receive()

    async def leave():
        await opened.__aexit__(None, None, None)

    await asyncio.create_task(leave())  # noqa: TID251 - as some fixtures do


async def closes_the_stream_itself(api):
    async with api.predictor_events.stream(**MANY) as batches:
        await batches.receive()
        await batches.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await batches.receive()


CONSUMERS = [
    breaks,
    raises,
    returns,
    never_reads,
    never_enters,
    drops_the_stream,
    drops_it_at_once,
    breaks_out_of_a_generator,
    is_cancelled_while_it_holds_a_batch,
    is_cancelled_twice,
    runs_out_of_time,
    leaves_it_in_another_task,
    closes_the_stream_itself,
]


async def settled(tasks):
    """Wait for tasks that nobody waits for any more to be gone."""
    for _ in range(1000):
        if asyncio.all_tasks() == tasks:
            return
        await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("consume", CONSUMERS)
async def test_a_consumer_that_goes_away_leaves_nothing(
    consume, served, tmp_path, monkeypatch
):
    tasks = asyncio.all_tasks()
    async with leaving_nothing(served, tmp_path, monkeypatch) as api:
        await consume(api)
        await settled(tasks)
        me = asyncio.current_task()
        assert not me.cancelling()
        # And it can be used on.
        assert await api.datasets.get(5)


async def test_a_callers_time_limit_is_the_callers(served, tmp_path, monkeypatch):
    """A call that is cancelled by a time-out raises that and nothing else."""
    async with leaving_nothing(served, tmp_path, monkeypatch) as api:
        for call in (get, stream, download):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await call(api, tmp_path / "d")
            with anyio.move_on_after(0) as scope:
                await call(api, tmp_path / "d")
            assert scope.cancelled_caught


async def test_an_observer_may_cancel_its_own_run(served, tmp_path, monkeypatch):
    async with leaving_nothing(served, tmp_path, monkeypatch) as api:
        plan = api.predictor_events.plan(**SPEECH)
        me = asyncio.current_task()

        def see(event):
            if isinstance(event, ItemEnded) and not me.cancelling():
                me.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asyncfetch.download(plan, tmp_path / "d", observe=see)
        assert me.uncancel() == 0
        await check_dataset(api, tmp_path / "d")
