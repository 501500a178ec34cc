"""NeuroVault on the command line; and its archive, asked without the client."""

import json
import urllib.error
import urllib.request

import pytest

import asyncfetch
from asyncfetch import _cli
from asyncfetch.testing import serve_in_thread
from asyncfetch.testing._neurovault import TOKEN
from asyncfetch.testing._neurovault_data import (
    POISONED,
    PRIVATE,
    TUTORIAL,
    TUTORIAL_DOI,
    TUTORIAL_IMAGE,
)


@pytest.fixture(scope="module")
def archive():
    with serve_in_thread(scale=0.2) as archive:
        yield archive


@pytest.fixture
def run(archive, monkeypatch, capsys):
    for name, value in archive.environment().items():
        monkeypatch.setenv(name, value)

    def call(*words, status=0):
        found = _cli.run(list(words))
        printed = capsys.readouterr()
        assert found == status, printed.err
        return printed.out + printed.err

    return call


def test_a_doi_is_a_word(run):
    words = (
        "show",
        "neurovault/collections",
        f"DOI={TUTORIAL_DOI}",
        "--format",
        "json",
    )
    (found,) = json.loads(run(*words))
    assert found["id"] == TUTORIAL


def test_fields_are_words_and_lists_have_commas(run):
    words = [
        "map_type=Z map,T map",
        "is_thresholded=false",
        f"collection_id={TUTORIAL}",
    ]
    said = run("show", "neurovault/images", *words, "--format", "jsonl")
    found = [json.loads(line) for line in said.splitlines()]
    assert {one["map_type"] for one in found} <= {"Z map", "T map"}
    assert TUTORIAL_IMAGE in {one["id"] for one in found}
    own = ("extra=my field=x", f"collection_id={TUTORIAL}", "--format", "json")
    (one,) = json.loads(run("show", "neurovault/images", *own))
    assert one["id"] == TUTORIAL_IMAGE


def test_files_are_fetched_and_gone_on_with(archive, run, tmp_path):
    dest, files = tmp_path / "d", tmp_path / "f"
    words = ("fetch", "neurovault/files", f"DOI={TUTORIAL_DOI}", "-o", str(dest))
    options = ("--files", str(files), "--concurrency", "32")
    said = run(*words, "--limit", "2", *options)
    assert "2 files of images" in said
    run(*words, *options)
    count = len(archive.truth.images(collection_id=TUTORIAL))
    folder = files / f"collection_{TUTORIAL}"
    assert len(list(folder.glob("image_*.nii.gz"))) == count
    asked = len(archive.log)
    assert "nothing left to ask" in run("resume", str(dest))
    assert len(archive.log) == asked
    assert "agree" in run("verify", str(dest))
    later = tmp_path / "later"
    run(*words[:3], f"earlier={dest}", "-o", str(later), "--quiet")
    assert not [e for e in archive.log[asked:] if "/media/" in e.target]
    assert asyncfetch.open_dataset(later).rows.count_rows() == count


def test_everything_names_what_cannot_be_read(run, tmp_path):
    dest = tmp_path / "d"
    said = run("fetch", "neurovault/images", "-o", str(dest), status=1)
    assert f"collections id={POISONED}" in said
    assert "neurovault cannot give this record" in run("status", str(dest), "--failed")
    assert "agree" in run("verify", str(dest))


def test_a_plan_is_counted_without_its_items(archive, run, tmp_path):
    words = ("fetch", "neurovault/files", f"collection_id={TUTORIAL}", "--dry-run")
    before = len(archive.log)
    said = run(*words, "-o", str(tmp_path / "d"), "--sample", "0")
    count = len(archive.truth.images(collection_id=TUTORIAL))
    assert f"{count} files of images" in said
    assert len(archive.log) == before + 1


def test_a_mistake_is_one_line(run):
    said = run("show", "neurovault/images", "map_typ=Z", status=2)
    assert "did you mean map_type" in said
    said = run("show", "neurovault/images", "collection_id=33", status=3)
    assert "private" in said
    assert PRIVATE[33] not in said


def test_tables_describe_themselves_without_a_server(capsys):
    assert _cli.run(["describe", "neurovault/files"]) == 0
    said = capsys.readouterr().out
    assert "modified_since" in said
    assert "earlier" in said
    assert "of the file as it came" in said


# --- the archive ----------------------------------------------------------------------


def ask(archive, path, **headers):
    """Status, headers and body of a GET."""
    request = urllib.request.Request(archive.neurovault + path, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.mark.parametrize(
    ("path", "status", "start"),
    [
        ("/collections/?limit=2&name=nobody", 200, b'{"count":'),
        ("/collections/?limit=1000", 500, b"<!DOCTYPE html>"),
        (f"/collections/{POISONED}/", 500, b"<!DOCTYPE html>"),
        (f"/collections/{POISONED}/images/", 200, b'{"count":'),
        ("/collections/abcdefgh/", 500, b"<!DOCTYPE html>"),
        ("/collections/ABCDEFGH/", 404, b'{"detail":"Not found."}'),
        ("/collections/33/", 403, b'{"detail":"You do not'),
        (f"/collections/{PRIVATE[33]}/", 200, b'{"id":33'),
        (f"/collections/{PRIVATE[34]}/", 500, b"<!DOCTYPE html>"),
        ("/my_collections/", 401, b'{"detail":"Authentication cred'),
        ("/cognitive_atlas_tasks/", 404, b"<!DOCTYPE html>"),
        ("/images/?format=xml", 404, b"{"),
        ("/images/?format=api", 200, b"<!DOCTYPE html>"),
    ],
)
def test_the_archive_answers_as_the_service_does(archive, path, status, start):
    found, _, body = ask(archive, path)
    assert (found, body[: len(start)]) == (status, start)


def test_the_archive_pages_as_the_service_does(archive):
    count = len(archive.truth.collections(private=False))
    for query, rows in (
        ("limit=0&offset=-3", None),
        ("limit=3&offset=20%2F", 3),
        (f"limit=5&offset={count}", 0),
    ):
        status, _, body = ask(archive, f"/collections/?{query}")
        if rows is None:  # the default page, with a bad record on it
            assert status == 500
            continue
        found = json.loads(body)
        assert (found["count"], len(found["results"])) == (count, rows)
    _, _, body = ask(archive, "/collections/?DOI=10.1016%2Fj&limit=1")
    assert "DOI=10.1016%2Fj&limit=1&offset=1" in json.loads(body)["next"]


def test_a_token_of_the_archive_is_looked_at_everywhere(archive):
    for header, status in (
        (f"Token {TOKEN}", 200),
        ("Token nonsense", 401),
        ("Token", 401),
        ("Token a b", 401),
        (f"Bearer {TOKEN}", 200),
    ):
        found, headers, _ = ask(
            archive, f"/collections/{TUTORIAL}/", Authorization=header
        )
        assert found == status
        assert (headers["WWW-Authenticate"] == "Token") == (status == 401)


def test_files_of_the_archive_know_no_ranges(archive):
    _, _, body = ask(archive, f"/images/{TUTORIAL_IMAGE}/")
    record = json.loads(body)
    request = urllib.request.Request(record["file"], headers={"Range": "bytes=5-"})
    with urllib.request.urlopen(request) as answer:
        data = answer.read()
        assert answer.status == 200
        assert answer.headers["Content-Encoding"] == "utf-8"
        assert "ETag" not in answer.headers
    assert len(data) == record["file_size"]
    assert data[:2] == b"\x1f\x8b"
