"""As much of Google Cloud Storage as a dataset needs, in memory on loopback.

Its XML API: objects with generations, and requests that depend on them
(https://cloud.google.com/storage/docs/xml-api/reference-headers). Nobody signs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

WHEN = 1_800_000_000


class _Bucket:
    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.generations = itertools.count(1_700_000_000_000_000)
        self.lock = threading.Lock()

    def listed(self, query: dict[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        after = query.get("start-after", query.get("continuation-token", [""]))[0]
        folders: set[str] = set()
        text = []
        for name, (_, data) in sorted(self.objects.items()):
            if not name.startswith(prefix) or name <= after:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            text.append(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size>"
                "<LastModified>2027-01-15T08:00:00.000Z</LastModified></Contents>"
            )
        text += [
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>"
            for one in sorted(folders)
        ]
        body = "".join(text)
        return f"<ListBucketResult>{body}</ListBucketResult>".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    bucket: _Bucket

    def log_message(self, format: str, *words: object) -> None:  # noqa: A002
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _name(self) -> str:
        bucket, _, name = unquote(urlsplit(self.path).path)[1:].partition("/")
        assert bucket == self.bucket.name, self.path
        return name

    def do_GET(self) -> None:
        bucket = self.bucket
        if not self._name:
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            with bucket.lock:
                body = bucket.listed(query)
            self._send(200, body, Content_Type="application/xml")
            return
        if self._name not in bucket.objects:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        generation, data = bucket.objects[self._name]
        headers = {
            "x-goog-generation": str(generation),
            "ETag": f'"{generation}"',
            "Last-Modified": formatdate(WHEN, usegmt=True),
        }
        if wanted := self.headers.get("Range"):
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(206, data[first : last + 1], **headers)
        else:
            self._send(200, data, **headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        bucket = self.bucket
        with bucket.lock:
            there, _ = bucket.objects.get(self._name, (0, b""))
            wanted = self.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != there:
                self._send(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            generation = next(bucket.generations)
            bucket.objects[self._name] = generation, data
        etag = f'"{generation}"'
        self._send(200, b"", ETag=etag, **{"x-goog-generation": str(generation)})

    def do_DELETE(self) -> None:
        with self.bucket.lock:
            is_there = self.bucket.objects.pop(self._name, None) is not None
        self._send(204 if is_there else 404)


@contextmanager
def service(bucket: str) -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """The service's URL, and what its one bucket holds, by name."""
    there = _Bucket(bucket)
    handler = type("Handler", (_Handler,), {"bucket": there})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", there.objects
        finally:
            server.shutdown()
            thread.join()
