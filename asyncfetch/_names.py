"""What stored files are called: names from the network, made safe and kept apart.

A service's name may hold anything. What becomes of it stays below the directory of
files, is a name that Linux, macOS and Windows all take, and differs from the names of
all other items of the plan even where upper and lower case are the same. The names are
given in the plan's order and frozen with it, so a resumed run finds them again. Pure.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata

# File systems take 255 bytes or UTF-16 units for a name; a little is left for the
# hidden sibling that a file is copied to when it changes disks.
MAX_NAME = 220
# Whole paths: macOS takes 1024 bytes, the directory they lie in included.
MAX_PATH = 760
MAX_DEPTH = 12

_PLAIN = re.compile(r"[A-Za-z0-9_#][A-Za-z0-9_ .+#@=,()\[\]~-]*(?<![ .])")
# Up to two short extensions stay behind a mark: .nii.gz, .CNG.swc
_EXTENSION = re.compile(r"(?:\.[A-Za-z0-9]{1,10}){0,2}\Z")
_FORBIDDEN = frozenset('<>:"/\\|?*')
# Controls, invisible marks of direction, lone surrogates, line ends
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Windows takes these for devices, whatever follows behind a dot.
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"]
    + [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)


def safe_path(wish: str) -> str:
    """A relative path with ``/`` between its names, from any text whatever.

    The same text gives the same path, and a path that is safe stays as it is.
    """
    names = [_safe_name(one) for one in wish.split("/") if one not in {"", "."}]
    path = "/".join(names or ["_"])
    if len(names) > MAX_DEPTH or len(path.encode()) > MAX_PATH:
        between = _digest("/".join(names[1:-1]))
        path = "/".join([names[0], f"~{between}", names[-1]])
    return path


def _safe_name(text: str) -> str:
    if not (_PLAIN.fullmatch(text) and len(text) <= MAX_NAME):
        text = "".join(
            "_" if one in _FORBIDDEN or unicodedata.category(one) in _INVISIBLE else one
            for one in unicodedata.normalize("NFC", text)
        ).rstrip(". ")
        if not text or text[0] == ".":  # empty, "..", or a file that is not shown
            text = f"_{text}"
    # str.upper makes two letters of some; none of these is in a device's name.
    if text.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        text = f"_{text}"
    if len(text.encode()) > MAX_NAME:
        text = _marked(text, _digest(text))
    return text


def _marked(name: str, mark: str) -> str:
    """*name* with a mark before its extensions, no longer than it may be."""
    found = _EXTENSION.search(name)
    extension = found[0] if found else ""
    room = MAX_NAME - len(extension) - len(mark) - 1
    stem = name[: len(name) - len(extension)].encode()[:room].decode(errors="ignore")
    return f"{stem}~{mark}{extension}"


def _digest(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def folded(path: str) -> str:
    """*path* as a file system sees it that ignores case and forms of letters."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize(
        "NFC", unicodedata.normalize("NFD", path).casefold()
    ).casefold()


class Names:
    """The paths that a plan's items have, each of them one item's alone.

    They are known by a hash in memory, some 70 bytes each: a mistake would make a name
    longer than need be and nothing worse.
    """

    def __init__(self) -> None:
        self._files: set[int] = set()
        self._folders: set[int] = set()

    def take(self, path: str) -> None:
        """Know a path that was given before."""
        path = folded(path)
        self._files.add(hash(path))
        while path := path.rpartition("/")[0]:
            self._folders.add(hash(path))

    def give(self, wish: str, key: str) -> str:
        """The path for the item *key* of a service that calls its file *wish*."""
        plain = safe_path(wish).split("/")
        names = list(plain)
        for turn in itertools.count():
            place = self._clash(names)
            if place is None:
                break
            names[place] = _marked(plain[place], _digest(key, turn))
        path = "/".join(names)
        self.take(path)
        return path

    def _clash(self, names: list[str]) -> int | None:
        """The first of *names* that a file or folder of another item has taken."""
        path = ""
        for place, name in enumerate(names):
            path = f"{path}/{name}" if path else name
            known = hash(folded(path))
            is_file = place == len(names) - 1
            if known in self._files or (is_file and known in self._folders):
                return place
        return None
