"""Datasets in buckets, for tests: the service, who asks there, and what others see."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from asyncfetch import ObjectStore
from asyncfetch._objects import create_bucket
from tests import _s3

BUCKET = "some-bucket"
numbers = itertools.count()


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with _s3.service() as url:
        yield url


@pytest.fixture(scope="module")
def environment(
    service: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Who asks, and where; nothing of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in _s3.KEYS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", service)
        patch.setenv("HOME", str(home))
        patch.setenv("TMPDIR", str(home))
        patch.setattr(tempfile, "tempdir", str(home))
        create_bucket(ObjectStore(f"s3://{BUCKET}"))
        client()  # by this environment, whatever a test makes of it
        yield
        client.cache_clear()


@pytest.fixture
def dest() -> str:
    """A place of its own."""
    return f"s3://{BUCKET}/tests/{next(numbers)}"


@pytest.fixture
def road(service: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[_s3.Road]:
    road = _s3.Road(service)
    monkeypatch.setenv("AWS_ENDPOINT_URL", road.url)
    yield road
    road.close()


@functools.cache
def client() -> Any:
    """Somebody else's client: making one takes half a second."""
    import boto3

    return boto3.client("s3", region_name="us-east-1")


def objects(dest: str) -> dict[str, int]:
    """Names of all objects of a dataset, with their sizes."""
    prefix = dest.removeprefix(f"s3://{BUCKET}/") + "/"
    pages = client().get_paginator("list_objects_v2")
    return {
        one["Key"].removeprefix(prefix): one["Size"]
        for page in pages.paginate(Bucket=BUCKET, Prefix=prefix)
        for one in page.get("Contents", [])
    }


def content(dest: str, name: str) -> bytes:
    """What an object holds."""
    key = f"{dest.removeprefix(f's3://{BUCKET}/')}/{name}"
    body: bytes = client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body


def files_in(dest: str) -> dict[str, bytes]:
    """Stored files, by their paths."""
    names = [one for one in objects(dest) if one.startswith("_files/")]
    return {name.removeprefix("_files/"): content(dest, name) for name in names}


def put(dest: str, name: str, data: bytes) -> None:
    """Put an object in the place of whatever is there, as others may."""
    key = f"{dest.removeprefix(f's3://{BUCKET}/')}/{name}"
    client().put_object(Bucket=BUCKET, Key=key, Body=data)
