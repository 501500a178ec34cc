"""A body is data only when it is whole: every way in which one can be cut or replaced.

The last part draws faults from a seed, the slow ones only on demand:
``pytest tests/test_faults.py -k drawn --seed 7 --rounds 5``.
"""

import gzip
import json
import threading
import zlib

import msgspec
import pytest
from zlib_ng import zlib_ng

import asyncfetch
from asyncfetch import _body, testing
from asyncfetch._decode import ArrayDecoder, arrays, document
from asyncfetch._model import Request
from asyncfetch.errors import DecodeError, IntegrityError, ResponseError
from asyncfetch.swc import read_swc
from asyncfetch.testing import Fault
from tests.conftest import Impatient, answer, chunked, exchange, look, open_wire

pytestmark = pytest.mark.anyio

RECORDS = [{"id": n, "name": f"a name of {n}"} for n in range(40)]
JSON = json.dumps(RECORDS).encode()
SWC = b"".join(b"%d 3 %d.5 0 0 1 %d\n" % (n, n, n - 1 or -1) for n in range(1, 40))


def raw_deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


CODINGS = {
    "plain": ("", bytes),
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "two gzip members": (
        "gzip",
        lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:]),
    ),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "GZip, in other letters": ("GZip", gzip.compress),
    "identity, gzip": ("identity, gzip", gzip.compress),
    "an encoding that is none": ("utf-8", bytes),
}
FRAMINGS = ("length", "chunked", "close")


def framed(body, framing, *, coding="", lost=0):
    """An answer of *body* that promises *lost* more bytes than come."""
    headers = f"Content-Encoding: {coding}\r\n" if coding else ""
    if lost:
        headers += "X-Then: cut\r\n"  # the server hangs up after it
    sent = body[: len(body) - lost]
    if framing == "chunked":
        return chunked(sent, ended=not lost, headers=headers)
    return answer(
        sent, length=len(body) if framing == "length" else None, headers=headers
    )


def consume(media):
    if media == "json":
        return lambda chunks, _response: document(chunks)
    return lambda chunks, _response: b"".join(chunks)


async def ask(wire, media="json", **options):
    asker = exchange(wire.url, **options)
    try:
        request = Request(target="/data", media=media)
        return (await asker.ask(request, consume(media))).value
    finally:
        await asker.aclose()


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("media", ["json", "swc"])
async def test_whole_data_are_taken_in_every_framing(media, coding, framing):
    name, encode = CODINGS[coding]
    data = JSON if media == "json" else SWC
    whole = framed(encode(data), framing, coding=name)
    async with open_wire(whole) as wire:
        assert await ask(wire, media) == (RECORDS if media == "json" else SWC)
        # A text whose end nothing shows has to come twice.
        unproved = media == "swc" and framing == "close" and encode is bytes
        assert len(wire.requests) == 1 + unproved


@pytest.mark.parametrize("lost", [1, 30])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("media", ["json", "swc"])
async def test_cut_data_are_asked_for_again(media, coding, framing, lost):
    name, encode = CODINGS[coding]
    data = JSON if media == "json" else SWC
    cut = framed(encode(data), framing, coding=name, lost=lost)
    whole = framed(encode(data), "length", coding=name)
    async with open_wire(cut, whole) as wire:
        assert await ask(wire, media) == (RECORDS if media == "json" else SWC)
        assert len(wire.requests) > 1


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate"])
async def test_a_compressed_body_that_is_cut_inside_a_good_frame_is_cut(
    coding, framing
):
    """As a proxy leaves it that lost its upstream and ended the answer politely."""
    name, encode = CODINGS[coding]
    cut = framed(encode(SWC)[:-9], framing, coding=name)
    whole = framed(encode(SWC), "length", coding=name)
    async with open_wire(cut, whole) as wire:
        assert await ask(wire, "swc") == SWC
        assert len(wire.requests) == 2


async def test_a_file_whose_end_nothing_proves_must_come_twice_the_same():
    cut, whole = framed(SWC[:99], "close"), framed(SWC, "close")
    async with open_wire(cut, whole, whole) as wire:
        assert await ask(wire, "swc") == SWC
        assert len(wire.requests) == 3


async def test_a_damaged_compressed_body_is_asked_for_again():
    packed = bytearray(gzip.compress(SWC))
    packed[len(packed) // 2] ^= 0x55
    damaged = framed(bytes(packed), "length", coding="gzip")
    plain = framed(SWC, "length", coding="gzip")  # says so, and is not
    whole = framed(gzip.compress(SWC), "length", coding="gzip")
    async with open_wire(damaged, plain, whole) as wire:
        assert await ask(wire, "swc") == SWC
        assert len(wire.requests) == 3


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "gzip, gzip"])
@pytest.mark.parametrize("media", ["json", "swc", "bytes"])
async def test_a_coding_that_was_not_asked_for_is_no_data(media, coding):
    data = JSON if media == "json" else SWC
    async with open_wire(framed(data, "length", coding=coding)) as wire:
        with pytest.raises(IntegrityError, match=f"in gzip, got {coding}"):
            await ask(wire, media)
        assert len(wire.requests) == 1


HTML = b"\n<!doctype html><title>Maintenance</title>"
NO_DATA = {
    "html": HTML,
    "html with a mark": b"\xef\xbb\xbf" + HTML,
    "html in capitals": b"<HTML><body>Please log in</body></HTML>",
    "an error of Spring": b'{"timestamp": "2026-01-01", "status": 500, "error": "no"}',
    "an error of Django": b'{"detail": "Server Error", "status_code": 500}',
    "an error of Flask": b'{"description": "no", "error": "Bad", "status_code": 502}',
    "a problem": b'{"type": "about:blank", "title": "no", "detail": "", "status": 503}',
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("coding", ["plain", "gzip"])
@pytest.mark.parametrize("body", NO_DATA)
@pytest.mark.parametrize("media", ["json", "swc"])
async def test_what_stands_in_the_place_of_data_is_no_data(
    media, body, coding, framing
):
    name, encode = CODINGS[coding]
    data = JSON if media == "json" else SWC
    wrong = framed(encode(NO_DATA[body]), framing, coding=name)
    async with open_wire(wrong, wrong, framed(data, "length")) as wire:
        assert await ask(wire, media) == (RECORDS if media == "json" else SWC)
        assert len(wire.requests) == 3


async def test_an_error_object_under_200_is_an_error():
    body = b'{"status": 500, "error": "Internal Server Error", "message": "no"}'
    async with open_wire(answer(body)) as wire:
        with pytest.raises(ResponseError, match="error object") as caught:
            await ask(wire)
    assert caught.value.status == 500
    assert caught.value.attempts == 6


@pytest.mark.parametrize("body", [b"", b" \n\t ", b"Please log in", b"\x89PNG\r\n"])
async def test_what_cannot_begin_json_is_no_json(body):
    async with open_wire(answer(body), answer(JSON)) as wire:
        assert await ask(wire) == RECORDS
        assert len(wire.requests) == 2


@pytest.mark.parametrize("kind", ["text/html", "image/png", "nonsense", ""])
async def test_the_bytes_count_and_not_the_content_type(kind):
    async with open_wire(answer(JSON, headers=f"Content-Type: {kind}\r\n")) as wire:
        assert await ask(wire) == RECORDS
        assert len(wire.requests) == 1


@pytest.mark.parametrize("media", ["swc", "bytes"])
async def test_blanks_are_bytes_where_the_format_does_not_say_otherwise(media):
    data = b" " * (2 * _body.SLICE) + b"\xef\xbb\xbf\n" + SWC
    async with open_wire(answer(data)) as wire:
        assert await ask(wire, media) == data


async def test_a_file_may_be_xml_but_no_page():
    image = b"<?xml version='1.0'?><GIFTI/>"
    async with open_wire(answer(HTML), answer(image)) as wire:
        assert await ask(wire, "bytes") == image
        assert len(wire.requests) == 2


class Node(msgspec.Struct):
    x: float


async def test_nan_literals_are_numbers_and_a_cut_one_is_a_cut():
    decoder = ArrayDecoder(
        msgspec.json.Decoder(list[Node]), msgspec.json.Decoder(list[Node])
    )

    async def numbers(wire):
        asker = exchange(wire.url)
        answer = await asker.ask(
            Request(target="/x"),
            lambda chunks, _: [n.x for some in arrays(chunks, decoder) for n in some],
        )
        await asker.aclose()
        return answer.value

    whole = b'[{"x": 1.5},{"x": NaN},{"x": -Infinity}]'
    for end in range(1, len(whole)):
        cut = answer(whole[:end], length=None)
        async with open_wire(cut, answer(whole)) as wire:
            assert repr(await numbers(wire)) == "[1.5, nan, -inf]"
            assert len(wire.requests) == 2


class Inflating:
    """Counts what is inflated, by thread."""

    def __init__(self, monkeypatch):
        self.counts = {}
        real = zlib_ng.decompressobj
        counts = self.counts

        class Counted:
            def __init__(self, wbits):
                self.stream = real(wbits)

            def decompress(self, data, most):
                out = self.stream.decompress(data, most)
                here = threading.get_ident()
                counts[here] = counts.get(here, 0) + len(out)
                assert len(out) <= _body.SLICE
                return out

            def __getattr__(self, name):
                return getattr(self.stream, name)

        monkeypatch.setattr(_body.zlib_ng, "decompressobj", Counted)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate"])
@pytest.mark.parametrize("media", ["json", "swc"])
async def test_a_bomb_is_refused_and_never_inflated_in_the_loop(
    media, coding, monkeypatch
):
    name, encode = CODINGS[coding]
    bomb = encode(b"[" + b"0," * (20 << 20))
    assert len(bomb) < _body.INLINE  # small: it is first tried in the loop
    seen = Inflating(monkeypatch)
    async with open_wire(framed(bomb, "length", coding=name)) as wire:
        with pytest.raises(IntegrityError, match="got more"):
            await ask(wire, media)
        assert len(wire.requests) == 1
    in_loop = seen.counts.pop(threading.get_ident())
    # A millisecond of a loop's time.
    assert in_loop <= _body.INLINE + _body.SLICE
    assert sum(seen.counts.values()) <= _body.FREE_INFLATED + _body.SLICE


async def test_a_large_body_of_repetitions_is_no_bomb(monkeypatch):
    monkeypatch.setattr(_body, "FREE_INFLATED", 1 << 20)
    rows = [{"onset": n / 8, "duration": 0.04, "value": "0.0"} for n in range(50_000)]
    packed = gzip.compress(json.dumps(rows).encode())
    async with open_wire(framed(packed, "length", coding="gzip")) as wire:
        assert await ask(wire) == rows


def test_the_bounds_on_inflating_are_on_bytes_and_on_the_ratio(monkeypatch):
    bomb = gzip.compress(bytes(16 << 20))
    body = _body.Body(data=bomb, size=len(bomb), sha256="", encoding="gzip")
    assert sum(map(len, body.chunks())) == 16 << 20  # large, and within the bounds
    monkeypatch.setattr(_body, "FREE_INFLATED", 1 << 20)
    for most in (_body.MAX_RATIO * len(bomb), 1 << 20):
        monkeypatch.setattr(_body, "MAX_INFLATED", min(most, _body.MAX_INFLATED))
        read = 0
        with pytest.raises(IntegrityError, match=f"at most {most} bytes"):
            for piece in body.chunks():
                read += len(piece)
        assert read <= most


async def test_a_page_that_memory_could_not_hold_is_refused(monkeypatch):
    monkeypatch.setattr("asyncfetch._decode.LARGEST", 1 << 20)
    async with open_wire(answer(b"[" + b"0," * (1 << 20) + b"0]")) as wire:
        with pytest.raises(DecodeError, match="at most 1 MiB, got more"):
            await ask(wire)
        assert len(wire.requests) == 1


# Pages --------------------------------------------------------------------------------


@pytest.fixture
async def archive():
    async with testing.serve(scale=1.2) as archive:
        yield archive


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api:
        api.exchange._rng = api.exchange.gate._rng = Impatient()
        yield api


def page(records, number, total):
    head = {"size": 500, "totalElements": total, "totalPages": -(-total // 500)}
    body = {"_embedded": {"neuronResources": records}, "page": head}
    if number is not None:
        head["number"] = number
    return Fault(body=json.dumps(body).encode())


async def test_a_page_that_is_another_is_asked_for_again(archive, api):
    """A cache that forgets the query answers every page with the first."""
    truth = archive.truth.neurons()
    archive.script("page=1&size=500", [page(truth[:500], 0, 1200)] * 2)
    rows = await api.neurons.get()
    assert [one["neuron_id"] for one in rows] == [one["neuron_id"] for one in truth]
    asked = [one.target for one in archive.log if "page=1&size=500" in one.target]
    assert len(asked) == 3


async def test_a_page_that_repeats_doubles_no_row_and_is_said(archive, api, tmp_path):
    truth = archive.truth.neurons()
    archive.script("page=1&size=500", [page(truth[:500], 1, 1200)] * 9)
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert report.rows == 700
    assert "names 1200 neurons and 700 distinct ones came" in report.shortfall


@pytest.mark.parametrize("times", [1, 3])
async def test_a_total_that_shrinks_while_paging_is_not_trusted(
    archive, api, tmp_path, times
):
    """The first neuron goes after its page was read: the others move up by one.

    1199 rows and a last total of 1199: one neuron is lost and looks like none.
    """
    truth = archive.truth.neurons()[:1200]
    archive.script("size=1&", [page(truth[:1], 0, 1200)])
    archive.script("page=0&size=500", [page(truth[:500], 0, 1200)] * times)
    archive.script("page=1&size=500", [page(truth[501:1001], 1, 1199)] * times)
    archive.script("page=2&size=500", [page(truth[1001:], 2, 1199)] * times)
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    if times == 1:
        assert (report.rows, report.shortfall) == (1200, None)
    else:
        assert report.rows == 1199
        assert "some of its 1199 neurons may not be among" in report.shortfall


# Drawn faults -------------------------------------------------------------------------

QUICK = (
    "error reset reset_body truncate truncate_silent truncate_gzip html error_object"
).split()
# A dripping body takes 5 s, and a 503 says to come back in 1 to 3 s.
SLOW = ["unavailable", "drip"]
EVENTS = {"dataset_name": "SherlockMerlin"}


async def rows_of(table, filters, dest):
    """Rows of a dataset that is filled until no item is left that failed."""
    plan = table.plan(**filters)
    for _ in range(20):
        try:
            report = await asyncfetch.download(plan, dest)
        except asyncfetch.AsyncfetchError:
            continue  # also the questions of planning may fail for good
        # What cannot be read as it is at the archive stays so: an empty trace.
        if {one.error_class for one in report.failed} <= {"DecodeError"}:
            assert report.shortfall is None
            break
    else:
        raise AssertionError("the run never came to its end")

    def read():
        return asyncfetch.open_dataset(dest).rows.to_table()

    return await look(read)


def multiset(rows):
    return sorted(map(repr, rows))


# Bodies drip for 5 s and pauses last up to 3 s, where every other answer fails.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("table", ["predictor_events", "neurons", "traces"])
async def test_drawn_faults_change_no_row(table, drawn_seed, tmp_path, request):
    if "asyncio" not in request.node.callspec.id:
        pytest.skip("the faults are the same on every loop")
    kinds = QUICK + (SLOW if request.config.getoption("--rounds") else [])
    faults = ",".join(f"{kind}=0.05" for kind in kinds)
    faults += f",throttle=200/s,seed={drawn_seed}"
    # Neurons come 500 to a page: more of them, for more than a few requests.
    scale = 4 if table == "neurons" else 0.06
    async with testing.serve(scale=scale, faults=faults) as archive:
        kind = (
            asyncfetch.Neuroscout
            if table == "predictor_events"
            else asyncfetch.NeuroMorpho
        )
        url = getattr(archive, kind.service)
        async with kind(base_url=url, limits=asyncfetch.Limits(concurrency=8)) as api:
            api.exchange._rng = api.exchange.gate._rng = Impatient()
            filters = EVENTS if table == "predictor_events" else {}
            found = await rows_of(getattr(api, table), filters, tmp_path / "rows")
        check = {
            "predictor_events": check_events,
            "neurons": check_neurons,
            "traces": check_traces,
        }[table]
        await look(check, archive.truth, found)
        assert table == "neurons" or {one.status for one in archive.log} - {200, 404}


def check_events(truth, found):
    (dataset,) = (one for one in truth.datasets() if one["name"] == "SherlockMerlin")
    newest = {
        one["name"]: one["id"]
        for one in truth.predictors(dataset_id=dataset["id"], private=False)
    }
    wanted = truth.events(newest.values(), dataset["runs"])
    columns = ["run_id", "predictor_id", "onset", "duration"]
    assert multiset(
        tuple(row[name] for name in columns) for row in found.to_pylist()
    ) == multiset(tuple(row[name] for name in columns) for row in wanted)


def check_neurons(truth, found):
    columns = ["neuron_id", "neuron_name", "archive"]
    assert multiset(
        tuple(row[name] for name in columns) for row in found.to_pylist()
    ) == multiset(tuple(row[name] for name in columns) for row in truth.neurons())


KEPT = ["node_id", "x", "parent_id"]


def check_traces(truth, found):
    rows = {}
    for row in found.select(["neuron_id", *KEPT]).to_pylist():
        rows.setdefault(row.pop("neuron_id"), []).append(row)
    for neuron in truth.neurons():
        body = truth.swc(neuron["neuron_id"])
        nodes = read_swc(body).nodes.select(KEPT).to_pylist() if body else []
        assert rows.pop(neuron["neuron_id"], []) == nodes
    assert not rows
