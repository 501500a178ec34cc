"""Places on object stores, and who asks there, by the ways of the AWS tools.

What a dataset does there is in :mod:`asyncfetch._bucket`.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from asyncfetch.errors import ConfigurationError, DatasetError

SCHEMES = ("s3", "gs", "az")
# Variables of obstore that say where a service of one's own is.
ENDPOINTS = {"gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}

# How long a server may be away: as long as signatures and payloads stay good.
PATIENCE = timedelta(minutes=3)
# What a request may take: a part of 128 MiB at less than 4 Mbit/s. One for more bytes
# may take longer.
REQUEST_SECONDS = 300
SLOWEST = 450_000  # bytes a second


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    """What is known of who asks: from the environment, or a profile of AWS."""

    options: Mapping[str, Any]
    """For obstore; what it finds by itself is left out."""
    endpoint_url: str | None
    region: str


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """A place on an object store where a dataset is, or will be.

    A text ``s3://bucket/prefix`` does the same with what the environment says.
    """

    url: str
    """``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``."""
    endpoint_url: str | None = None
    """Where a service of one's own is, by default what ``AWS_ENDPOINT_URL``,
    ``GOOGLE_BASE_URL`` or ``AZURE_STORAGE_ENDPOINT`` says."""
    region: str | None = None
    """Of the bucket, by default what the environment or a profile of AWS says."""
    anonymous: bool = False
    """Whether to ask without credentials: for buckets that everybody may read."""

    def __post_init__(self) -> None:
        known = ", ".join(f"{one}://bucket/prefix" for one in SCHEMES)
        try:
            parts = urlsplit(self.url)
        except ValueError:
            raise ConfigurationError(
                f"expected a directory or {known}, got what is no URL"
            ) from None
        if parts.scheme not in SCHEMES or not parts.hostname:
            place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            raise ConfigurationError(f"expected a directory or {known}, got {place!r}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError(
                f"expected {parts.scheme}://bucket/prefix and nothing else, got more "
                f"for {parts.scheme}://{parts.netloc.rpartition('@')[2]}: credentials "
                "belong into the environment"
            )
        if self.endpoint_url is not None and "://" not in self.endpoint_url:
            raise ConfigurationError(
                f"expected a URL as endpoint, got {self.endpoint_url!r}: begin it with "
                "http:// or https://"
            )

    def __str__(self) -> str:
        return self.url.rstrip("/")

    @property
    def bucket(self) -> str:
        """Its name."""
        return urlsplit(self.url).netloc


Destination: TypeAlias = str | Path | ObjectStore
"""Where a dataset is: a directory, or a place on an object store."""


def below(dest: Destination, name: str) -> Destination:
    """The place *name* below *dest*."""
    if isinstance(dest, ObjectStore):
        return replace(dest, url=f"{dest}/{name}")
    return f"{dest}/{name}" if "://" in str(dest) else Path(dest) / name


def create_bucket(place: ObjectStore) -> None:
    """Make a bucket, unless it is there and ours.

    Raises
    ------
    ConfigurationError
        The name cannot be a bucket's, or it is not S3.
    DatasetError
        The service refuses.
    """
    if not place.url.startswith("s3://"):
        raise ConfigurationError(
            f"expected s3://NAME, got {place}: make buckets of other services with "
            "their own tools"
        )
    if urlsplit(place.url).path.strip("/"):
        raise ConfigurationError(f"expected s3://NAME and no prefix, got {place}")
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9.-]{1,61})[a-z0-9]", place.bucket):
        raise ConfigurationError(
            "expected 3 to 63 small letters, digits, hyphens and dots as a bucket's "
            f"name, got {place.bucket!r}"
        )
    from pyarrow import fs  # noqa: PLC0415 - obstore makes no buckets

    account = _account(place)
    given = account.options
    options: dict[str, Any] = {"region": account.region, "allow_bucket_creation": True}
    if account.endpoint_url is not None:
        options["endpoint_override"] = account.endpoint_url
    if place.anonymous:
        options["anonymous"] = True
    elif "access_key_id" in given:
        options["access_key"] = given["access_key_id"]
        options["secret_key"] = given["secret_access_key"]
        options["session_token"] = given.get("session_token")
    try:
        fs.S3FileSystem(**options).create_dir(place.bucket)
    except OSError as error:
        if "BucketAlreadyOwnedByYou" in str(error):
            return
        text = re.sub(r" ?\(Request ID.*", "", " ".join(str(error).split()))
        raise DatasetError(f"expected to make the bucket {place}, got {text}") from None


def _account(place: ObjectStore) -> _Account:
    """Who asks, and where, by the ways of the AWS tools."""
    env = os.environ
    if not place.url.startswith("s3://"):
        anonymous = {"skip_signature": True} if place.anonymous else {}
        endpoint = place.endpoint_url or env.get(ENDPOINTS[place.url[:2]])
        return _Account(options=anonymous, endpoint_url=endpoint, region="")
    profile = _profile()
    endpoint = (
        place.endpoint_url
        or env.get("AWS_ENDPOINT_URL_S3")
        or env.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
    )
    region = (
        place.region
        or env.get("AWS_REGION")
        or env.get("AWS_DEFAULT_REGION")
        or profile.get("region")
        or "us-east-1"
    )
    options: dict[str, Any] = {"region": region}
    names = {
        "access_key_id": "aws_access_key_id",
        "secret_access_key": "aws_secret_access_key",
        "session_token": "aws_session_token",
    }
    if place.anonymous:
        options["skip_signature"] = True
    elif "AWS_ACCESS_KEY_ID" not in env:
        for key, name in names.items():
            if name in profile:
                options[key] = profile[name]
        elsewhere = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_")
        if (
            "access_key_id" not in options
            and env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
            and not any(name.startswith(elsewhere) for name in env)
        ):
            raise ConfigurationError(
                f"expected credentials for {place}, got none: set AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or say --anonymous"
            )
    return _Account(options=options, endpoint_url=endpoint, region=region)


def _profile() -> Mapping[str, str]:
    """What the files of the AWS tools say of the profile that is chosen.

    Keys, region and endpoint; not what must be asked for elsewhere (single sign-on,
    roles to assume, programs that give credentials).
    """
    env = os.environ
    name = env.get("AWS_PROFILE", "default")
    home = Path.home() / ".aws"
    found: dict[str, str] = {}
    places = (
        (env.get("AWS_CONFIG_FILE"), home / "config", f"profile {name}"),
        (env.get("AWS_SHARED_CREDENTIALS_FILE"), home / "credentials", name),
    )
    for told, usual, section in places:
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read(told or usual, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            raise ConfigurationError(
                f"expected a profile of AWS, got something else in {told or usual}"
            ) from None
        for one in (section, name):  # [default] has no word before it
            if parser.has_section(one):
                found.update(parser.items(one))
                break
    if "AWS_PROFILE" in env and not found and "AWS_ACCESS_KEY_ID" not in env:
        raise ConfigurationError(
            f"expected a profile of AWS called {name!r}, as AWS_PROFILE says, got none"
        )
    return found


def connect(place: ObjectStore, seconds: int = REQUEST_SECONDS) -> Any:
    """Obstore's view of the objects below *place*.

    Parameters
    ----------
    seconds
        What a request may take.

    Raises
    ------
    ConfigurationError
        The library is not installed, or credentials are not what they should be.
    """
    try:
        from obstore import exceptions, store  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            f"{place} needs the library obstore: pip install 'asyncfetch[objects]'"
        ) from None
    account = _account(place)
    options = dict(account.options)
    if account.endpoint_url is not None:
        name = "base_url" if place.url.startswith("gs://") else "endpoint"
        options[name] = account.endpoint_url
    is_plain = (account.endpoint_url or "").startswith("http://")
    try:
        return store.from_url(
            str(place),
            client_options={
                "allow_http": is_plain,
                "connect_timeout": timedelta(seconds=10),
                "timeout": timedelta(seconds=seconds),
            },
            retry_config={
                "max_retries": 1000,  # the time is what ends it
                "retry_timeout": patience(seconds),
                "backoff": {"max_backoff": timedelta(seconds=5)},
            },
            **options,
        )
    except (exceptions.BaseError, ValueError) as error:
        raise ConfigurationError(
            f"expected what names an object store, got {place}: {reason(error)}"
        ) from None


def patience(seconds: int) -> timedelta:
    """How long a request that may take *seconds* is made again after it failed."""
    return PATIENCE + timedelta(seconds=seconds - REQUEST_SECONDS)


def reason(error: BaseException) -> str:
    """What a service said, in a few words and without anything secret."""
    text = str(error)
    said = re.search(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?", text)
    if said is not None:
        return ": ".join(filter(None, said.groups()))
    if "kind: Connect" in text or "ConnectError" in text:
        return "no connection to it"
    status = re.search(r"status code: (\d{3}[ \w]*)", text)
    if status is not None:
        return status[1].strip()
    first = text.partition("\n")[0] or type(error).__name__
    return re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", first)[:300]


def no_bucket(text: str) -> bool:
    names = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")
    return any(one in text for one in names)
