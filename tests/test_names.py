"""Names of stored files: inside, taken by every system, and one item's alone."""

import ntpath
import posixpath
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncfetch._names import MAX_NAME, Names, folded, safe_path

# Pieces that are trouble somewhere, beside any text at all.
TROUBLE = st.sampled_from(
    [
        *("..", ".", "/", "//", "\\", "\0", "\n", "C:", "~", "~root", " ", ". .", "-"),
        *("con", "NUL.swc", "aux .txt", "COM¹", "lpt9.tar.gz", "a" * 300, "é" * 200),
        *("A", "a", "ß", "SS", "\u0131", "I", "e\u0301", "\u00e9", "\u202e", "\ud800"),
        *(".bashrc", "x.nii.gz", "x" * 250 + ".nii.gz", "=\u0338", "<\u0338", "\u0345"),
    ]
)
WISHES = st.lists(TROUBLE | st.text(), max_size=9).map("".join)
DEEP = st.lists(st.sampled_from(["a", "b" * 300, ".."]), max_size=40).map("/".join)


# Python 3.13 has moved it.
is_device = getattr(
    ntpath, "isreserved", lambda name: PureWindowsPath(name).is_reserved()
)


def check_name(name):
    assert 0 < len(name.encode()) <= MAX_NAME
    assert name not in {".", ".."}
    assert name[0] != "."
    assert name[-1] not in " ."
    assert not set(name) & set('<>:"/\\|?*\0')
    assert not any(unicodedata.category(one) in {"Cc", "Cf", "Cs"} for one in name)
    assert not is_device(name)


@given(WISHES | DEEP)
@example("../../etc/passwd")
@example("/etc/passwd")
@example("C:\\Windows\\system32")
@example("")
def test_no_wish_leaves_the_directory(wish):
    path = safe_path(wish)
    assert not posixpath.isabs(path)
    assert posixpath.normpath(path) == path
    assert (Path("/files") / path).resolve().is_relative_to("/files")
    windows = PureWindowsPath("C:/files") / path
    assert windows.is_relative_to("C:/files")
    assert len(path.encode()) < 1000
    for name in path.split("/"):
        check_name(name)


@given(WISHES | DEEP)
def test_a_safe_path_stays_as_it_is(wish):
    assert safe_path(safe_path(wish)) == safe_path(wish)


@given(st.lists(WISHES | DEEP, max_size=12))
@example(["Cnic/a.swc", "cnic/A.swc", "cnic/a.swc"])
@example(["a", "a/b", "A/b", "a/b/c"])
@example(["a/b", "a"])
@example(["\u00e9", "e\u0301", "\u00c9"])
def test_no_two_items_have_the_same_file(wishes):
    keys = [f"item={n}" for n in range(len(wishes))]
    names = Names()
    paths = [names.give(*one) for one in zip(wishes, keys, strict=True)]
    seen = {folded(path) for path in paths}
    assert len(seen) == len(paths)
    folders = {parent for path in seen for parent in _parents(path)}
    assert not folders & seen, "a file lies where a folder must be"
    for path in paths:
        assert safe_path(path) == path
    again = Names()
    assert [again.give(*one) for one in zip(wishes, keys, strict=True)] == paths
    # A resumed run takes what was given, and goes on the same way.
    resumed = Names()
    half = len(paths) // 2
    for path in paths[:half]:
        resumed.take(path)
    rest = zip(wishes[half:], keys[half:], strict=True)
    assert [resumed.give(*one) for one in rest] == paths[half:]


def _parents(path):
    while path := path.rpartition("/")[0]:
        yield path


@pytest.mark.parametrize(
    ("wish", "path"),
    [
        ("Wearne_Hof/CNG version/cnic_001.CNG.swc",) * 2,
        ("sub/2020-01-01/001/alf/#2024-05-06#/spikes.times.npy",) * 2,
        ("/etc/passwd", "etc/passwd"),
        ("../../x", "_/_/x"),
        ("a\\..\\b", "a_.._b"),
        ("C:/x", "C_/x"),
        ("nul.swc", "_nul.swc"),
        (".profile", "_.profile"),
        ("name. . ", "name"),
        ("", "_"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_an_ordinary_name_is_kept_and_another_stays_readable(wish, path):
    assert safe_path(wish) == path


def test_a_long_name_keeps_its_beginning_and_its_extensions():
    name = safe_path("n" * 300 + ".CNG.swc")
    assert name.startswith("n" * 100)
    assert name.endswith(".CNG.swc")
    assert name != safe_path("n" * 301 + ".CNG.swc")


def test_names_that_differ_in_case_get_a_file_each_the_first_as_it_is():
    names = Names()
    assert names.give("a/Cell.CNG.swc", "neuron=1") == "a/Cell.CNG.swc"
    second = names.give("a/cell.CNG.swc", "neuron=2")
    assert second.startswith("a/cell~")
    assert second.endswith(".CNG.swc")
