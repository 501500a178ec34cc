"""Conditional requests and parts of files, as a plain web server answers them.

By RFC 9110, sections 13 and 14: what Apache does for a file on its disk. Several ranges
in one request are not taken up, which the RFC leaves to the server.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace

from asyncfetch.testing._answer import Answer

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def validators(content: bytes, modified: str) -> dict[str, str]:
    """Headers that say which version of a file an answer holds."""
    mark = hashlib.blake2b(content, digest_size=6).hexdigest()
    return {
        "ETag": f'"{len(content):x}-{mark}"',
        "Last-Modified": modified,
        "Accept-Ranges": "bytes",
    }


def conditional(answer: Answer, asked: Mapping[str, str]) -> Answer:
    """*answer* as the conditions and the range in the request's headers leave it."""
    if answer.status != 200 or "Accept-Ranges" not in answer.headers:
        return answer
    etag, modified = answer.headers["ETag"], answer.headers["Last-Modified"]
    if "If-None-Match" in asked:
        known = [one.strip() for one in asked["If-None-Match"].split(",")]
        is_known = etag in known or f"W/{etag}" in known or known == ["*"]
    else:
        is_known = asked.get("If-Modified-Since") == modified
    if is_known:
        return replace(answer, status=304, body=b"")
    if asked.get("If-Range", etag) not in {etag, modified}:
        return answer
    found = _RANGE.fullmatch(asked.get("Range", "").strip())
    if found is None or found[0] == "bytes=-":
        return answer
    whole = len(answer.body)
    first = int(found[1]) if found[1] else max(0, whole - int(found[2]))
    last = min(int(found[2]), whole - 1) if found[1] and found[2] else whole - 1
    if first >= whole or last < first:
        headers = {**answer.headers, "Content-Range": f"bytes */{whole}"}
        return replace(answer, status=416, body=b"", headers=headers)
    headers = {**answer.headers, "Content-Range": f"bytes {first}-{last}/{whole}"}
    return replace(
        answer, status=206, body=answer.body[first : last + 1], headers=headers
    )
