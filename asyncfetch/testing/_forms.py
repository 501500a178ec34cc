"""Forms that clients send (multipart/form-data, RFC 7578), taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser

from asyncfetch.testing._answer import Call


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
    head = f"Content-Type: {call.content_type}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + call.body)
    return list(_parts(message))


def _parts(message: Message) -> Iterator[FormPart]:
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            data = part.get_payload(decode=True)
            assert isinstance(data, bytes)
            yield FormPart(name=name, file_name=part.get_filename(), data=data)
