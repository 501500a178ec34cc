"""Killed anywhere, a dataset loses nothing committed and doubles nothing."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from asyncfetch import _dataset, _files, _store
from asyncfetch._dataset import View, Writer
from asyncfetch._store import CRASH_POINTS
from asyncfetch._verify import verify
from asyncfetch.errors import DatasetError

from . import _datasets as made_up

posix = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")


def die_at(point: str, dest: Path | str, *work: str) -> None:
    """Fetch, or do other *work*, in a process of its own until it dies at *point*."""
    ended = subprocess.run(
        [sys.executable, made_up.__file__, str(dest), *work],
        env={
            **os.environ,
            "ASYNCFETCH_CRASH": point,
            "PYTHONPATH": str(Path(_store.__file__).parents[1]),
        },
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def final_keys(dest: Path | str) -> set[str]:
    items = View(dest).items.to_pylist()
    return {row["key"] for row in items if row["outcome"] != "failed"}


def assert_whole(dest: Path) -> None:
    """The dataset is what one undisturbed run makes of the service."""
    assert made_up.all_rows(dest) == made_up.expected_rows(made_up.KEYS)
    keys = [row["key"] for row in View(dest).items.to_pylist()]
    assert sorted(keys) == sorted(made_up.KEYS)
    assert verify(dest) == []
    assert list((dest / "_asyncfetch/tmp").iterdir()) == []
    if View(dest).plan.files is not None:
        files = made_up.files_in(dest / "_files")
        assert files == {
            f"some/{key}.txt": made_up.content_of(key)
            for key in made_up.KEYS - made_up.MISSING
        }
        assert list((dest / "_asyncfetch/partial").iterdir()) == []


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose writer died in its second commit, between the two renames."""
    dest = tmp_path_factory.mktemp("begun") / "dataset"
    die_at("items-durable:2", dest)
    assert len(final_keys(dest)) == 3
    return dest


@posix
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_run_killed_at_a_point_is_finished_by_the_next(
    point: str, begun: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "dataset"
    if not point.startswith("plan-"):  # the plan is written only once
        shutil.copytree(begun, dest)
    die_at(point, dest)
    there = final_keys(dest) if (dest / "_asyncfetch/plan.json").exists() else set()

    asked = made_up.download(dest)

    assert not there & set(asked)
    assert_whole(dest)
    assert made_up.download(dest) == []


@posix
@pytest.mark.parametrize(
    "point", ["block-durable:3", "items-linked:3", "part-linked:2"]
)
def test_run_killed_at_its_first_attempt_is_finished_by_the_next(
    point: str, tmp_path: Path
) -> None:
    die_at(point, tmp_path / "dataset")
    made_up.download(tmp_path / "dataset")
    assert_whole(tmp_path / "dataset")


@posix
def test_planning_goes_on_behind_the_last_frozen_block(tmp_path: Path) -> None:
    dest = tmp_path / "dataset"
    die_at("block-durable:2", dest)
    writer = Writer.open(dest, None, made_up.SCHEMA)
    assert writer.cursor == 8
    assert not writer.plan_complete
    assert "7" in made_up.keys_of(made_up.flat(writer.pending()))
    writer.close()


class Stepped(threading.Thread):
    """A run that waits before each durable step until it is told to take it."""

    def __init__(self, work: Callable[[], object], stops: frozenset[str]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._stops = stops
        self._go = threading.Semaphore(0)
        self._waiting = threading.Semaphore(0)
        self.ended = False
        self.error: BaseException | None = None

    def run(self) -> None:
        self._go.acquire()
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        self.ended = True
        self._waiting.release()

    def reach(self, point: str) -> None:
        if point in self._stops:
            self._waiting.release()
            self._go.acquire()

    def step(self) -> None:
        self._go.release()
        self._waiting.acquire()


def reach(point: str) -> None:
    thread = threading.current_thread()
    if isinstance(thread, Stepped):
        thread.reach(point)


def schedules(run: Callable[[list[int]], list[tuple[int, ...]]]) -> Iterator[list[int]]:
    """Every order of steps: *run* takes a beginning and tells who could go each time.

    It goes on with the first of them where the beginning ends.
    """
    todo: list[list[int]] = [[]]
    while todo:
        beginning = todo.pop()
        choices = run(beginning)
        yield beginning
        taken = beginning + [able[0] for able in choices[len(beginning) :]]
        for place in range(len(beginning), len(choices)):
            todo.extend([*taken[:place], other] for other in choices[place][1:])


def steps_of(*files: str) -> frozenset[str]:
    return frozenset(
        f"{file}-{step}" for file in files for step in ("staged", "linked", "durable")
    )


TAKEOVER = frozenset(point for point in CRASH_POINTS if point.startswith("takeover"))
TAKEOVER |= {"open-announced", "items-linked", "part-linked"}


@posix
@pytest.mark.parametrize(
    ("stops", "has_locks", "files"),
    [
        (steps_of("items", "part"), True, None),
        (steps_of("follow", "items"), True, None),
        (steps_of("items", "part"), False, None),
        (frozenset({"note-staged", "note-durable", "file-linked"}), True, "_files"),
    ],
    ids=["rows", "follow-ups", "lease", "files"],
)
def test_writer_that_slept_in_its_commit_adds_nothing_after_a_takeover(
    stops: frozenset[str],
    has_locks: bool,
    files: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_locks:

        def flock(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(_store.fcntl, "flock", flock)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    begun = tmp_path / "begun"
    record = replace(made_up.RECORD, files=files)
    writer = Writer.open(begun, record, made_up.SCHEMA)
    planned = list(made_up.enumerate_rest(writer))
    for one in planned[:2]:
        writer.add(made_up.result_of(one))
    writer.seal()
    writer.close()
    numbers = itertools.count()
    ends = set()

    def run(beginning: list[int]) -> list[tuple[int, ...]]:
        dest = tmp_path / str(next(numbers))
        shutil.copytree(begun, dest)
        sleeper = Writer.open(dest, None, made_up.SCHEMA)
        for one in planned[2:4]:
            sleeper.add(made_up.result_of(one))

        def take_over() -> None:
            clock = itertools.count(0, 30)
            writer = Writer.open(
                dest,
                None,
                made_up.SCHEMA,
                clock=lambda: float(next(clock)),
                sleep=lambda _: None,
            )
            made_up.fetch(writer, seal_every=100)
            writer.close()

        threads = (
            Stepped(sleeper.seal, stops),
            Stepped(take_over, TAKEOVER),
        )
        for thread in threads:
            thread.start()
        choices: list[tuple[int, ...]] = []
        while able := tuple(n for n, one in enumerate(threads) if not one.ended):
            choices.append(able)
            place = len(choices) - 1
            threads[beginning[place] if place < len(beginning) else able[0]].step()
        asleep, awake = threads
        assert awake.error is None
        assert asleep.error is None or isinstance(asleep.error, DatasetError)
        ends.add(type(asleep.error))
        sleeper.close()
        assert_whole(dest)
        shutil.rmtree(dest)
        return choices

    monkeypatch.setattr(_store, "crash_point", reach)
    monkeypatch.setattr(_dataset, "crash_point", reach)
    monkeypatch.setattr(_files, "crash_point", reach)
    assert sum(1 for _ in schedules(run)) > 50
    assert ends == {type(None), DatasetError}
