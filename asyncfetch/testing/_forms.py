"""Forms that clients send (multipart/form-data, RFC 7578), taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from asyncfetch.testing._answer import Call

# Quotes and line ends in them are percent-encoded by who sends them.
_WORD = re.compile(r'\b(name|filename)="([^"]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class FormPart:
    """One part of a form."""

    name: str
    file_name: str | None
    data: bytes

    @property
    def text(self) -> str:
        """Its content as text."""
        return self.data.decode("utf-8", "replace")


def form(call: Call) -> list[FormPart]:
    """The parts of a multipart body, in their order."""
    if not call.content_type.startswith("multipart/form-data"):
        return []
    mark = b"--" + call.content_type.partition("boundary=")[2].strip('"').encode()
    return list(_parts(call.body, mark))


def _parts(body: bytes, mark: bytes) -> Iterator[FormPart]:
    for part in body.split(mark)[1:-1]:
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        words = dict(_WORD.findall(head.decode()))
        if "name" in words:
            yield FormPart(
                name=words["name"],
                file_name=words.get("filename"),
                data=data.removesuffix(b"\r\n"),
            )
