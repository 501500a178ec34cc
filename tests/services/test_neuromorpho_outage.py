"""NeuroMorpho.Org: an outage is no absence, and what is read is all there is."""

import json

import anyio
import pytest

import asyncfetch
from asyncfetch import _absence, _gate
from asyncfetch._absence import Absence, Verdict
from asyncfetch._model import RequestSent
from asyncfetch.services import _select
from asyncfetch.testing import Fault, serve
from tests.conftest import Impatient, look

pytestmark = pytest.mark.anyio
SIEGERT = "CB_CKp25_2w_F_Animal01_*"


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr(_absence, "PATIENCE", 0.1)


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api:
        api.exchange._rng = api.exchange.gate._rng = Impatient()
        yield api


def health_of(archive):
    return [one for one in archive.log if one.target.endswith("/api/health")]


async def items_of(dest):
    def read():
        return asyncfetch.open_dataset(dest).items.to_pylist()

    return await look(read)


class Once:
    """An observer that does something before the first request with a word in it."""

    def __init__(self, word, action):
        self.word, self.action = word, action

    def __call__(self, event):
        if isinstance(event, RequestSent) and self.word in event.url and self.action:
            action, self.action = self.action, None
            action()


async def test_files_that_are_missing_are_missing_while_all_is_well(
    archive, api, tmp_path
):
    report = await asyncfetch.download(api.traces.plan(), tmp_path / "t")
    missing = [
        one["neuron_id"]
        for one in archive.truth.neurons()
        if archive.truth.swc(one["neuron_id"]) is None
    ]
    assert report.items["missing"] == len(missing) == 1
    assert 1 <= len(health_of(archive)) <= 3  # two more are in an odd folder


async def test_what_an_outage_answers_is_not_believed(
    archive, api, tmp_path, monkeypatch
):
    """Half of the files come; then all is 404, and later it is well again."""
    monkeypatch.setattr(_absence, "PATIENCE", 0.05)
    away = {"since": None}

    def watch(event):
        if not isinstance(event, RequestSent):
            return
        files = sum("/dableFiles/" in one.target for one in archive.log)
        if away["since"] is None and files >= 20:
            archive.neuromorpho_is_away, away["since"] = True, len(archive.log)
        elif away["since"] and len(archive.log) > away["since"] + 30:
            archive.neuromorpho_is_away = False

    report = await asyncfetch.download(api.traces.plan(), tmp_path / "t", observe=watch)
    assert away["since"] is not None
    assert not archive.neuromorpho_is_away
    truth = archive.truth
    ids = [one["neuron_id"] for one in truth.neurons()]
    items = {one["key"]: one["outcome"] for one in await items_of(tmp_path / "t")}
    gone = {f"neuron={n}" for n in ids if truth.swc(n) is None}
    assert {key for key, one in items.items() if one == "missing"} == gone
    assert report.items.get("failed", 0) <= 1  # the empty file


async def test_a_service_that_is_away_ends_a_run_and_says_so(archive, api, tmp_path):
    archive.neuromorpho_is_away = True
    with pytest.raises(asyncfetch.TransportError, match="no proof that there is"):
        await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    with pytest.raises(asyncfetch.TransportError, match="no proof that there is"):
        await api.neuron(1)
    assert len(health_of(archive)) <= 2


@pytest.mark.parametrize(
    ("table", "word"), [("traces", "/dableFiles/"), ("morphometry", "/morphometry/")]
)
async def test_a_run_that_was_cut_by_an_outage_is_completed_by_the_next(
    archive, tmp_path, monkeypatch, table, word
):
    monkeypatch.setattr(_absence, "PATIENCE", 0.05)
    begin = Once(word, lambda: setattr(archive, "neuromorpho_is_away", True))
    url = archive.neuromorpho
    async with asyncfetch.NeuroMorpho(base_url=url, item_timeout=0.5) as api:
        api.exchange._rng = api.exchange.gate._rng = Impatient()
        plan = api.table(table).plan(neuron_name=SIEGERT)
        with pytest.raises(asyncfetch.TransportError):
            await asyncfetch.download(plan, tmp_path / "t", observe=begin)
    archive.neuromorpho_is_away = False
    _gate._gates.clear()  # another process
    async with asyncfetch.NeuroMorpho(base_url=url) as api:
        plan = api.table(table).plan(neuron_name=SIEGERT)
        report = await asyncfetch.download(plan, tmp_path / "t")
    assert report.items == {"ok": 12}
    codes = [one["diagnostics"] for one in await items_of(tmp_path / "t")]
    assert not any("not-measured" in one for one in codes)


class Looker:
    """A clock, and a service that says how it is."""

    def __init__(self):
        self.now, self.is_up, self.looks = 100.0, True, []
        self.absence = Absence(lambda: self.now)

    async def look(self):
        self.looks.append(self.now)
        return self.is_up

    async def judge(self, *, impatient=False):
        with self.absence.asking():
            return await self.absence.judge(self.look, impatient=impatient)


async def judged_after(looker, count, *sent_at):
    """What *count* 404 are worth when things come that were sent at those times."""
    verdicts = []

    async def judge():
        verdicts.append(await looker.judge())

    async with anyio.create_task_group() as group:
        with looker.absence.asking():  # what comes is under way
            for _ in range(count):
                group.start_soon(judge)
            for one in sent_at:
                await anyio.wait_all_tasks_blocked()
                assert not verdicts
                looker.absence.there(one)
    return verdicts


async def test_a_404_is_believed_by_what_comes_after_it(monkeypatch):
    monkeypatch.setattr(_absence, "PATIENCE", 10.0)
    looker = Looker()
    assert await looker.judge() is Verdict.PROVED
    looker.absence.there(101.0)
    looker.now = 103.0
    # Of old news an impatient one takes note; another one waits for what comes.
    assert await looker.judge(impatient=True) is Verdict.PROVED
    assert await judged_after(looker, 1, 102.0, 104.0) == [Verdict.PROVED]
    looker.now = 105.0
    # Two side by side may be an outage that has passed: they are to be asked again.
    assert await judged_after(looker, 2, 106.0) == 2 * [Verdict.DOUBTFUL]
    assert looker.looks == [100.0]


async def test_a_service_that_says_it_is_down_is_asked_again_only_later(monkeypatch):
    monkeypatch.setattr(_absence, "PATIENCE", 10.0)
    looker = Looker()
    looker.is_up = False
    assert await looker.judge() is Verdict.DOWN
    looker.now = 105.0
    assert await looker.judge() is Verdict.DOWN
    assert looker.looks == [100.0]
    assert looker.absence.is_down
    looker.absence.there(104.0)
    assert not looker.absence.is_down
    looker.now = 200.0
    assert await looker.judge() is Verdict.DOWN
    assert looker.looks == [100.0, 200.0]


async def test_where_nothing_else_comes_the_health_is_asked_again(monkeypatch):
    looker = Looker()
    monkeypatch.setattr(_absence, "PATIENCE", 0.0)
    assert await looker.judge() is Verdict.PROVED
    looker.now = 102.0
    assert await looker.judge() is Verdict.PROVED
    assert looker.looks == [100.0, 102.0]


async def test_the_last_404_does_not_wait_for_what_cannot_come(monkeypatch):
    monkeypatch.setattr(_absence, "PATIENCE", 1000.0)
    monkeypatch.setattr(_absence, "ALONE", 1.0)
    looker = Looker()
    assert await looker.judge() is Verdict.PROVED
    looker.absence.there(101.0)
    looker.now = 102.0
    verdicts = []

    async def judge():
        verdicts.append(await looker.judge())

    async with anyio.create_task_group() as group:
        with looker.absence.asking():
            group.start_soon(judge)
            await anyio.wait_all_tasks_blocked()
            assert looker.looks == [100.0]
        # What was under way has failed: nothing else can show how the service is.
    assert looker.looks == [100.0, 102.0]
    assert verdicts == [Verdict.PROVED]


async def test_an_index_that_lost_most_of_itself_is_refused(archive, api, tmp_path):
    await api.neurons.get(limit=1)
    ids = [one["neuron_id"] for one in archive.truth.neurons()]
    archive.withdraw(*ids[10:])
    for table in (api.neurons, api.traces, api.morphometry):
        with pytest.raises(
            asyncfetch.ResponseError, match=r"about 60 .* got 10: it is"
        ):
            await asyncfetch.download(table.plan(), tmp_path / table.description.name)
    api.census.accepts_fewer = True
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert report.rows == 10
    api.census.accepts_fewer = False
    assert len(await api.neurons.get()) == 10  # that is what is known by now


async def test_a_part_of_an_index_that_lost_most_of_itself_is_refused_too(
    archive, tmp_path, monkeypatch
):
    """What was seen is remembered from one process to the next."""
    monkeypatch.setenv("ASYNCFETCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ASYNCFETCH_CACHE_LOOPBACK", "1")
    url = archive.neuromorpho
    async with asyncfetch.NeuroMorpho(base_url=url) as api:
        assert len(await api.neurons.get(archive="Siegert")) == 12
        await api.neurons.get(archive="Jacobs")
    counts = [one for one in archive.log if "/api/neuron?page=0&size=1&" in one.target]
    assert len(counts) == 1  # the whole index is counted once
    asyncfetch._profile._profiles.clear()
    ids = [one["neuron_id"] for one in archive.truth.neurons()]
    archive.withdraw(*ids[3:])
    async with asyncfetch.NeuroMorpho(base_url=url) as api:
        with pytest.raises(asyncfetch.ResponseError, match="about 60 neurons"):
            await api.neurons.get(archive="Siegert")
    monkeypatch.setenv("ASYNCFETCH_NEUROMORPHO_ACCEPT_FEWER", "1")
    async with asyncfetch.NeuroMorpho.from_env(base_url=url) as api:
        assert len(await api.neurons.get(archive="Siegert")) == 2


@pytest.fixture
def small_pages(monkeypatch):
    """As if there were many pages."""
    for module in ("_select", "_records"):
        monkeypatch.setattr(f"asyncfetch.services.{module}.PAGE", 10)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("new", [(), (50, 51, 52)], ids=["", "others come"])
@pytest.mark.parametrize("verb", ["get", "stream", "download"])
async def test_neurons_that_slip_through_an_index_that_changes_are_read_again(
    archive, api, tmp_path, verb, new
):
    """Two neurons of a page that was read vanish: two others move up to it.

    With as many rows as the service names in the end, when new ones come meanwhile.
    """
    archive.withdraw(*new)
    plan = api.neurons.plan()
    ids = [one["neuron_id"] for one in archive.truth.neurons()]
    api.exchange.gate.set_limits(asyncfetch.Limits(concurrency=1))

    def first_page_is_there():
        archive.withdraw(3, 4)

    observe = Once("page=1&size=10", first_page_is_there)
    if verb == "download":
        report = await asyncfetch.download(plan, tmp_path / "n", observe=observe)
        assert report.shortfall is None

        def read():
            return asyncfetch.open_dataset(tmp_path / "n").rows.to_table()

        rows = await look(read)
        found = rows["neuron_id"].to_pylist()
    else:
        archive.script("page=1&size=10", [Fault(delay=0.05)])
        from asyncfetch import _engine

        if verb == "get":
            results = await _engine.collect(plan, as_records=False, observe=observe)
            batches = [one for result in results for one in result.batches]
        else:
            async with _engine.open_stream(plan, observe=observe) as stream:
                batches = [one async for one in stream]
        found = [n for one in batches for n in one["neuron_id"].to_pylist()]
    assert len(found) == len(set(found))
    assert set(found) >= set(ids) - {3, 4}


@pytest.mark.usefixtures("small_pages")
async def test_what_is_complete_is_read_once(archive, api, tmp_path):
    await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    targets = [one.target for one in archive.log]
    assert len(targets) == len(set(targets)) == 6


@pytest.mark.usefixtures("small_pages")
async def test_a_page_that_stays_wrong_is_read_a_few_times_and_reported(
    archive, api, tmp_path
):
    body = json.dumps(
        {
            "_embedded": {"neuronResources": [dict(archive.truth.neurons()[0])]},
            "page": {"size": 10, "totalElements": 60, "totalPages": 6, "number": 1},
        }
    ).encode()
    archive.script("page=1&size=10", [Fault(body=body)] * 50)
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert report.shortfall.startswith("the service names 60 neurons and 50 distinct")
    asked = [one for one in archive.log if "page=1&size=10" in one.target]
    assert len(asked) == _select.MOST_TURNS
    again = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert again.requests == 0
    assert again.shortfall == report.shortfall


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("table", ["traces", "morphometry"])
async def test_a_plan_made_while_the_index_shrinks_has_each_neuron_once(
    archive, api, tmp_path, table
):
    observe = Once("page=2&size=10", lambda: archive.withdraw(3, 4))
    plan = api.table(table).plan()
    report = await asyncfetch.download(plan, tmp_path / "t", observe=observe)
    assert report.shortfall is None
    keys = [one["key"] for one in await items_of(tmp_path / "t")]
    ids = [one["neuron_id"] for one in archive.truth.neurons()]
    assert sorted(keys) == sorted(f"neuron={n}" for n in ids)
    async with api.table(table).stream(on_error="report") as batches:
        async for _ in batches:
            pass
    outcomes = batches.report().items
    assert sum(outcomes.values()) == len(ids) - 2


@pytest.mark.usefixtures("small_pages")
async def test_a_plan_made_of_pages_that_do_not_agree_says_so(archive, api, tmp_path):
    body = json.dumps(
        {
            "_embedded": {"neuronResources": archive.truth.neurons()[:10]},
            "page": {"size": 10, "totalElements": 60, "totalPages": 6, "number": 1},
        }
    ).encode()
    archive.script("page=1&size=10", [Fault(body=body)] * 50)
    report = await asyncfetch.download(api.morphometry.plan(), tmp_path / "m")
    assert report.shortfall.startswith("the service names 60 neurons and 50 distinct")
    again = await asyncfetch.download(api.morphometry.plan(), tmp_path / "m")
    assert (again.requests, again.shortfall) == (0, report.shortfall)


@pytest.fixture
def odd_records(archive):
    """One page of eight records, most of which are odd in one way or another."""
    records = archive.truth.neurons()[:8]
    records[1] |= {"neuron_name": ".."}
    records[2] |= {"archive": ".."}
    records[3] = {"neuron_name": "no id"}
    records[4] |= {"neuron_name": None}
    del records[5]["archive"]
    records[6] = None
    records[7] |= {"reference_doi": [["no"], None, {"such": "paper"}]}
    page = {"size": 500, "totalElements": 8, "totalPages": 1, "number": 0}
    body = {"_embedded": {"neuronResources": records}, "page": page}
    fault = Fault(body=json.dumps(body).encode())
    archive.script("&size=1&", [fault])
    archive.script("size=500", [fault] * 3)
    return records


@pytest.mark.usefixtures("odd_records")
async def test_one_odd_record_fails_and_the_others_do_not(archive, api, tmp_path):
    report = await asyncfetch.download(api.traces.plan(), tmp_path / "t")
    assert report.items == {"ok": 2, "failed": 6}
    assert report.shortfall is None
    failed = [one for one in await items_of(tmp_path / "t") if one["outcome"] != "ok"]
    assert {one["error_class"] for one in failed} == {"DecodeError"}
    assert {tuple(one["diagnostics"]) for one in failed} == {("odd-record",)}
    assert all("cannot be used: expected" in one["error"] for one in failed)
    assert not any(".." in one.target for one in archive.log)
    again = await asyncfetch.download(api.traces.plan(), tmp_path / "t")
    assert again.items == report.items
    assert again.requests == 0


async def test_a_record_that_gives_no_row_fails_and_the_others_of_its_page_do_not(
    archive, api, odd_records, tmp_path
):
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert report.items == {"ok": 1, "failed": 3}
    assert report.rows == 5
    assert report.shortfall is None
    asked = [one for one in archive.log if "size=500" in one.target]
    assert len(asked) == 1
    page, *failed = await items_of(tmp_path / "n")
    assert [one["key"] for one in failed] == ["record=0.3", "record=0.4", "record=0.6"]
    assert {tuple(one["diagnostics"]) for one in failed} == {("odd-record",)}
    place = "$._embedded.neuronResources[3].neuron_id"
    assert f"expected a value, got null - at {place}" in failed[0]["error"]
    kept = json.loads(page["detail"])["odd"]
    assert kept == [odd_records[3], odd_records[4], None]
    again = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert (again.items, again.rows) == (report.items, 5)
    assert again.requests == 0


async def test_records_come_as_sent_also_when_they_give_no_row(api, odd_records):
    assert await api.neurons.get() == odd_records


async def test_the_archive_can_be_told_to_be_away_for_a_while():
    async with (
        serve(scale=0.05, faults="away=0+1000") as archive,
        asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api,
    ):
        assert (await api.health())["status"] == "DOWN"
