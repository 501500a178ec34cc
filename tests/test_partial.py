"""A large file on its way: what was received is kept, and never trusted too much."""

import hashlib
import re

import pytest

from asyncfetch._model import FileWish, Limits, Request, RequestSent
from asyncfetch._partial import PROGRESS, Partial, note_of, rest_of, validator_of
from asyncfetch._store import LocalStore, Staging
from asyncfetch.errors import DatasetError, IntegrityError
from tests.conftest import answer, look, open_wire
from tests.test_exchange import exchange

pytestmark = pytest.mark.anyio

MIB = 1 << 20
# Bytes that repeat nowhere, so that a piece in the wrong place shows.
FILE = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(3 * MIB // 32))
ETAG = 'ETag: "v1"\r\n'


class Shelf:
    """Answers for one file, as a server with ranges gives them, or nearly."""

    def __init__(self, content=FILE, *, validators=ETAG, cut=None):
        self.content = content
        self.validators = validators
        self.cut = cut
        self.ranges = []

    def __call__(self, head):
        start = self.asked(head)
        if start is None:
            return self.send("200 OK", 0, "")
        whole = len(self.content)
        if start >= whole:
            return answer(
                status="416 Range Not Satisfiable",
                headers=f"Content-Range: bytes */{whole}\r\n",
            )
        return self.send(
            "206 Partial Content",
            start,
            f"Content-Range: bytes {start}-{whole - 1}/{whole}\r\n",
        )

    def asked(self, head):
        found = re.search(rb"\r\nRange: bytes=(\d+)-", head)
        start = int(found[1]) if found else None
        self.ranges.append(start)
        return start

    def send(self, status, start, headers):
        rest = self.content[start:]
        headers += self.validators
        if self.cut is None or len(rest) <= self.cut:
            return answer(rest, status=status, headers=headers)
        return answer(
            rest[: self.cut],
            status=status,
            headers=f"X-Is: cut\r\n{headers}",
            length=len(rest),
        )


@pytest.fixture
def room(tmp_path):
    store = LocalStore(tmp_path / "dataset")
    store.create()
    staging = Staging(store, "0" * 16)
    staging.announce()
    return staging


def partial_in(staging, url, wish=None):
    home = staging.folder.parent.parent / "partial" / "0123"
    return Partial(home, staging, f"{url}/file", wish or FileWish(path="file"))


async def fetch(
    wire, staging, *, wish=None, observe=None, partial=None, impatient=False, **options
):
    """The bytes that come, and the answer that they come with."""
    asker = exchange(wire.url, **options)
    partial = partial or partial_in(staging, wire.url, wish)
    request = Request(
        target="/file", media="bytes", file=wish or FileWish(path="file.swc")
    )
    try:
        return await asker.ask(
            request,
            lambda chunks, _response: b"".join(chunks),
            impatient=impatient,
            partial=partial,
            spool_dir=staging.folder,
            **({"observe": observe} if observe else {}),
        )
    finally:
        partial.close()
        await asker.aclose()


def assert_goes_on(ranges):
    """Each attempt begins behind the one before (a cut may cost some bytes read)."""
    assert ranges[0] is None
    starts = ranges[1:]
    assert starts
    assert sorted(set(starts)) == starts


async def test_a_file_that_is_cut_again_and_again_goes_on_where_it_stopped(room):
    shelf = Shelf(cut=200_000)
    async with open_wire(shelf) as wire:
        found = await fetch(wire, room)
    assert found.value == FILE
    assert found.response.body.sha256 == hashlib.sha256(FILE).hexdigest()
    assert found.attempts > 6, "more than the tries of a question"
    assert_goes_on(shelf.ranges)
    assert wire.header("If-Range") == '"v1"'
    assert wire.header("Accept-Encoding") == "identity"


async def test_attempts_without_progress_come_to_an_end(room):
    shelf = Shelf(cut=PROGRESS - 1)
    async with open_wire(shelf) as wire:
        with pytest.raises(IntegrityError) as caught:
            await fetch(wire, room)
    assert caught.value.attempts == 6
    assert shelf.ranges == [None] * 6, "so few bytes are not worth a range"


async def test_a_whole_answer_in_place_of_the_rest_starts_over(room):
    first = Shelf(cut=2 * MIB)
    async with open_wire(
        first, lambda _: answer(FILE, headers='ETag: "v2"\r\n')
    ) as wire:
        found = await fetch(wire, room)
        assert wire.header("Range")
    assert found.value == FILE
    assert found.response.body.sha256 == hashlib.sha256(FILE).hexdigest()


async def test_a_file_that_changed_between_two_attempts_is_the_new_one(room):
    new = FILE[::-1]
    async with open_wire(
        Shelf(cut=2 * MIB), answer(new, headers='ETag: "v2"\r\n')
    ) as wire:
        assert (await fetch(wire, room)).value == new


def part(content_range, *, validators=ETAG):
    """An answer with the rest that was asked for, and *content_range* in its head."""

    def reply(head):
        n, size = Shelf().asked(head), len(FILE)
        return answer(
            FILE[n:],
            status="206 Partial Content",
            headers=f"Content-Range: {content_range(n, size)}\r\n{validators}",
        )

    return reply


WRONG_PARTS = {
    "another beginning": part(lambda _n, size: f"bytes 5-{size - 1}/{size}"),
    "another total": part(lambda n, size: f"bytes {n}-{size - 1}/{size + 1}"),
    "no range at all": part(lambda *_: ""),
    "items, not bytes": part(lambda n, size: f"items {n}-{size - 1}/{size}"),
    "an end beyond the total": part(lambda n, size: f"bytes {n}-{size}/{size}"),
    "another ETag": part(
        lambda n, size: f"bytes {n}-{size - 1}/{size}", validators='ETag: "v2"\r\n'
    ),
}


@pytest.mark.parametrize("case", WRONG_PARTS)
async def test_a_part_that_does_not_fit_is_refused_and_no_range_asked_again(room, case):
    whole = Shelf()
    async with open_wire(Shelf(cut=2 * MIB), WRONG_PARTS[case], whole) as wire:
        found = await fetch(wire, room)
        assert wire.header("Range", 1)
    assert found.value == FILE
    assert whole.ranges == [None]


async def test_a_part_that_nobody_asked_for_is_refused(room):
    part = answer(FILE[:100], status="206 x", headers="Content-Range: bytes 0-99/100")
    async with open_wire(part) as wire:
        with pytest.raises(IntegrityError, match="expected a whole file, got a part"):
            await fetch(wire, room)


async def test_a_part_may_name_no_total(room):
    rest = part(lambda n, size: f"bytes {n}-{size - 1}/*")
    async with open_wire(Shelf(cut=2 * MIB), rest) as wire:
        assert (await fetch(wire, room)).value == FILE
        assert len(wire.requests) == 2


async def test_an_answer_that_is_shorter_than_the_rest_is_gone_on_from(room):
    shelf = Shelf(cut=MIB)

    def some(head):
        n = shelf.asked(head)
        return answer(
            FILE[n : n + MIB],
            status="206 x",
            headers=f"Content-Range: bytes {n}-{n + MIB - 1}/{len(FILE)}\r\n{ETAG}",
        )

    async with open_wire(shelf, some, Shelf()) as wire:
        assert (await fetch(wire, room)).value == FILE
        assert wire.header("Range") == f"bytes={shelf.ranges[1] + MIB}-"


async def test_a_416_with_the_same_length_says_that_all_is_there(room):
    """A body that ends with its connection proves nothing; the 416 proves it."""
    shelf = Shelf()
    open_end = answer(FILE, headers=ETAG, length=None)
    async with open_wire(open_end, shelf) as wire:
        found = await fetch(wire, room)
    assert shelf.ranges == [len(FILE)]
    assert found.value == FILE
    assert found.attempts == 2


async def test_a_416_with_another_length_starts_over(room):
    shelf = Shelf(cut=2 * MIB)
    refusal = answer(status="416 x", headers="Content-Range: bytes */77\r\n")
    async with open_wire(shelf, refusal, shelf, shelf) as wire:
        assert (await fetch(wire, room)).value == FILE
    assert shelf.ranges[:2] == [None, None]


@pytest.mark.parametrize(
    "validators",
    [
        "",
        'ETag: W/"v1"\r\n',
        'ETag: W/"v1"\r\nLast-Modified: Fri, 31 Dec 1999 23:59:59 GMT\r\n',
        (
            "Last-Modified: Fri, 31 Dec 1999 23:59:59 GMT\r\n"
            "Date: Fri, 31 Dec 1999 23:59:59 GMT\r\n"
        ),
        "Last-Modified: yesterday\r\n",
    ],
    ids=["none", "weak", "weak beside a date", "a date of this second", "no date"],
)
async def test_without_a_strong_validator_a_file_starts_over(room, validators):
    cut, whole = Shelf(validators=validators, cut=2 * MIB), Shelf(validators=validators)
    async with open_wire(cut, whole) as wire:
        assert (await fetch(wire, room)).value == FILE
    assert whole.ranges == [None]


@pytest.mark.parametrize(
    ("validators", "sent"),
    [
        ("ETag: v1\r\n", "v1"),
        ('ETag: "v1"\r\nLast-Modified: Fri, 31 Dec 1999 23:59:59 GMT\r\n', '"v1"'),
        (
            (
                "Last-Modified: Fri, 31 Dec 1999 23:59:59 GMT\r\n"
                "Date: Sat, 01 Jan 2000 00:00:01 GMT\r\n"
            ),
            "Fri, 31 Dec 1999 23:59:59 GMT",
        ),
        (
            "Last-Modified: Fri, 31 Dec 1999 23:59:59 GMT\r\n",
            "Fri, 31 Dec 1999 23:59:59 GMT",
        ),
    ],
    ids=["an ETag without quotes", "both", "an old date", "a date, and no clock"],
)
async def test_the_validator_goes_back_as_it_came(room, validators, sent):
    shelf = Shelf(validators=validators, cut=2 * MIB)
    async with open_wire(shelf) as wire:
        assert (await fetch(wire, room)).value == FILE
        assert wire.header("If-Range") == sent


async def test_an_error_page_in_between_spoils_nothing(room):
    shelf = Shelf(cut=2 * MIB)
    sorry = answer(b"<h1>sorry</h1>", status="503 x")
    async with open_wire(shelf, sorry, shelf) as wire:
        assert (await fetch(wire, room)).value == FILE
    assert_goes_on(shelf.ranges)


async def test_a_later_run_goes_on_with_what_is_on_the_disk(room):
    shelf = Shelf(cut=2 * MIB)
    async with open_wire(shelf, b"") as wire:
        with pytest.raises((IntegrityError, OSError)):
            await fetch(wire, room, impatient=True)  # to wait for a dead host is long
        wire.answers = [Shelf.__call__.__get__(again := Shelf())]
        found = await fetch(wire, room)
    assert MIB < again.ranges[0] <= 2 * MIB
    assert found.value == FILE
    assert found.response.body.sha256 == hashlib.sha256(FILE).hexdigest()


async def test_a_file_that_was_all_there_is_not_asked_for(room):
    async with open_wire(Shelf(cut=2 * MIB)) as wire:
        await fetch(wire, room)
        asked = len(wire.requests)
        sent = []
        found = await fetch(wire, room, observe=sent.append)
        assert len(wire.requests) == asked
    assert not [one for one in sent if isinstance(one, RequestSent)]
    assert found.value == FILE
    assert found.attempts == 0
    assert found.response.headers["ETag"] == '"v1"'


SPOILED = {
    "the bytes are gone": lambda home: home.unlink(),
    "there are fewer bytes": lambda home: home.write_bytes(FILE[:99]),
    "the note is cut": lambda home: note_of(home).write_text('{"url"'),
    "the note is of another file": lambda home: note_of(home).write_text(
        note_of(home).read_text().replace("/file", "/elif")
    ),
}


@pytest.mark.parametrize("case", SPOILED)
async def test_what_cannot_be_trusted_starts_over(room, case):
    async with open_wire(Shelf(cut=2 * MIB), b"") as wire:
        with pytest.raises((IntegrityError, OSError)):
            await fetch(wire, room, impatient=True)  # to wait for a dead host is long
        partial = partial_in(room, wire.url)
        SPOILED[case](partial._home)
        wire.answers = [again := Shelf()]
        assert (await fetch(wire, room)).value == FILE
    assert again.ranges == [None]


async def test_whole_bytes_that_were_changed_on_the_disk_are_asked_for(room):
    async with open_wire(Shelf()) as wire:
        await fetch(wire, room)
        partial = partial_in(room, wire.url)
        content = bytearray(FILE)
        content[MIB] ^= 1
        partial._home.write_bytes(content)
        asked = len(wire.requests)
        assert (await fetch(wire, room)).value == FILE
        assert len(wire.requests) == asked + 1


SUMS = {
    "md5": hashlib.md5(FILE).hexdigest(),
    "sha1": hashlib.sha1(FILE).hexdigest(),
    "sha256": hashlib.sha256(FILE).hexdigest().upper(),
}


@pytest.mark.parametrize("kind", SUMS)
async def test_a_checksum_is_that_of_old_and_new_bytes_together(room, kind):
    wish = FileWish(path="file", size=len(FILE), checksum=SUMS[kind])
    async with open_wire(Shelf(cut=MIB)) as wire:
        assert (await fetch(wire, room, wish=wish)).value == FILE


@pytest.mark.parametrize(
    "wish",
    [
        FileWish(path="file", size=len(FILE) + 1),
        FileWish(path="file", checksum="0" * 32),
        FileWish(path="file", checksum="0" * 40),
        FileWish(path="file", checksum="0" * 64),
    ],
    ids=["size", "md5", "sha1", "sha256"],
)
async def test_a_file_that_is_not_the_promised_one_is_asked_for_once_more(room, wish):
    async with open_wire(Shelf()) as wire:
        with pytest.raises(IntegrityError, match=r"expected (checksum )?\d+"):
            await fetch(wire, room, wish=wish)
        assert len(wire.requests) == 2


async def test_a_small_file_costs_no_file(room):
    small = FILE[:1000]
    async with open_wire(Shelf(small)) as wire:
        found = await fetch(wire, room)
    assert found.response.body.data == small
    assert not list((room.folder.parent.parent / "partial").iterdir())
    assert not list(room.folder.iterdir())


async def test_a_file_must_not_come_packed(room):
    packed = answer(FILE, headers="Content-Encoding: gzip\r\n")
    async with open_wire(packed) as wire:
        with pytest.raises(IntegrityError, match="in gzip, which was not asked for"):
            await fetch(wire, room)
        assert len(wire.requests) == 1


async def test_a_gz_file_is_kept_as_it_is_whatever_it_is_called(room):
    wish = FileWish(path="brain.nii.gz")
    packed = answer(FILE, headers="Content-Encoding: x-gzip\r\n")
    async with open_wire(packed) as wire:
        assert (await fetch(wire, room, wish=wish)).value == FILE


async def test_the_time_of_an_item_counts_anew_after_progress(room):
    """The clock of the first attempt has run out long before the last one begins."""
    now = [0.0]
    shelf = Shelf(cut=MIB)

    def slow(head):
        now[0] += 70
        return shelf(head)

    import asyncfetch._exchange as module

    class Clock:
        @staticmethod
        def monotonic():
            return now[0]

    real, module.time = module.time, Clock
    try:
        async with open_wire(slow) as wire:
            found = await fetch(wire, room, item_timeout=100, limits=Limits())
    finally:
        module.time = real
    assert found.value == FILE
    assert now[0] > 200


async def test_a_run_that_was_taken_over_writes_no_more(room):
    async with open_wire(Shelf()) as wire:
        partial = partial_in(room, wire.url)
        later = Staging(room._store, "1" * 16)
        await look(later.announce)
        with pytest.raises(DatasetError, match="another run took over"):
            await fetch(wire, room, partial=partial)
    assert not partial._home.exists()


@pytest.mark.parametrize(
    ("text", "have", "total", "whole"),
    [
        ("bytes 5-9/10", 5, 10, 10),
        ("bytes 5-9/10", 5, None, 10),
        ("bytes 5-9/*", 5, 10, 10),
        ("bytes 5-9/*", 5, None, None),
        ("BYTES 5-7/10", 5, 10, 10),
    ],
)
def test_the_rest_of_a_file_is_known_by_its_range(text, have, total, whole):
    assert rest_of({"Content-Range": text}, have, total) == whole


@pytest.mark.parametrize(
    "text",
    ["bytes 4-9/10", "bytes 5-9/11", "bytes 5-10/10", "bytes 5-4/10", "5-9/10", ""],
)
def test_anything_else_is_not_the_rest(text):
    with pytest.raises(IntegrityError, match="expected bytes 5- of 10"):
        rest_of({"Content-Range": text}, 5, 10)


def test_a_weak_mark_is_weak_in_any_case():
    assert validator_of({"ETag": 'w/"x"'}) is None
    assert validator_of({"ETag": ' "x" '}) == '"x"'
