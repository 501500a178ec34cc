"""NeuroVault: collections of brain images, their records and their files.

Filters are applied to the records that come, because the service ignores them, and
images are found through their collections, because its lists have no order (see
:mod:`asyncfetch.services._vault`). Private collections answer by a token
(:mod:`asyncfetch.services._vaulthttp`), and no file is believed to be whole
(:mod:`asyncfetch.services._vaultfiles`).
"""

from __future__ import annotations

import gzip
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from asyncfetch._decode import document
from asyncfetch._model import Item, Limits, Part, Request
from asyncfetch._neurovault_schema import (
    ATLAS,
    CODES,
    COLLECTION,
    IMAGE,
    NIDM_RESULTS,
    PAGE,
)
from asyncfetch._threads import in_thread, surely_in_thread
from asyncfetch.errors import (
    AsyncfetchError,
    AuthenticationError,
    ConfigurationError,
    DecodeError,
    IntegrityError,
    NotFound,
    ResponseError,
    TransportError,
)
from asyncfetch.services._paging import target
from asyncfetch.services._table import Client, Description, close, members, plain
from asyncfetch.services._vault import Images, Lists, filters_of, schema_of
from asyncfetch.services._vaultfiles import (
    FILTERS,
    SCHEMA,
    Files,
    FilesTable,
    VaultTable,
    proved,
)
from asyncfetch.services._vaulthttp import (
    PRIVATE_TOKEN,
    VaultExchange,
    login,
    refusal,
)

Record = dict[str, Any]

# A small server: 4 synchronous workers, no limits of its own, 502 when it is too much.
_LIMITS = Limits(rate=8.0, concurrency=4)
# Bytes of records as sent: 3.2 kB a collection, about 2 kB an image.
_COLLECTION_BYTES, _IMAGE_BYTES = 3200.0, 2000.0
_KEY = re.compile(
    r"(?:https?://.*/(?:collections|images|atlases|nidm_results)/)?"
    r"((?:[A-Z]{8}-)?\d+|[A-Z]{8})/?"
)
_FILES_SENT = ("file", "surface_left_file", "surface_right_file")


def _one(path: str, key: Any) -> Request:
    """The request for a record by its number, its private token, or its URL."""
    found = _KEY.fullmatch(str(key).strip())
    if found is None or isinstance(key, bool):  # the server would answer 500
        raise ConfigurationError(
            f"expected a number, the 8 capital letters of a private collection, or a "
            f"URL of {path.strip('/')}, got {str(key)[:100]!r}"
        )
    return Request(target=f"{path}{found[1]}/")


def _list(
    name: str, path: str, summary: str, kinds: Mapping[str, str], size: float
) -> Description:
    schema = schema_of(kinds)
    is_images = path == "/images/"

    def item_bytes(item: Item) -> float:
        window = item.context.get("window", {})
        rows: int = min(window.get("likely") or 10, window.get("limit", 1))
        return size * rows

    def source(filters: Mapping[str, Any]) -> Lists:
        kind = Images if is_images else Lists
        return kind(path=path, kinds=kinds, filters=filters, schema=schema)

    return Description(
        name=name,
        summary=summary,
        item=f"pages of up to {PAGE} {name}",
        item_bytes=item_bytes,
        filters=filters_of(kinds, of_images=is_images),
        schema=schema,
        row_key="id",
        source=source,
        one=lambda key: _one(path, key),
        table=VaultTable,
    )


class NeuroVault(Client):
    """https://neurovault.org: statistical maps, parcellations and atlases.

    Parameters
    ----------
    token
        Of an account, as Account settings > token has it: needed to write, and for
        private collections of one's own.
    private
        Tokens of other private collections, 8 capital letters each. They are asked for
        by their numbers then, so that no token gets into a plan.
    """

    service = "neurovault"
    default_url = "https://neurovault.org/api"
    default_limits = _LIMITS
    limits_source = "its server has 4 synchronous workers"
    exchange_class = VaultExchange
    exchange: VaultExchange

    collections: VaultTable
    images: VaultTable
    atlases: VaultTable
    nidm_results: VaultTable
    files: FilesTable

    descriptions: ClassVar[tuple[Description, ...]] = (
        _list(
            "collections",
            "/collections/",
            "Collections of images",
            COLLECTION,
            _COLLECTION_BYTES,
        ),
        _list(
            "images",
            "/images/",
            "Images: one record each, whatever their kind",
            IMAGE,
            _IMAGE_BYTES,
        ),
        _list("atlases", "/atlases/", "Atlases", ATLAS, _IMAGE_BYTES),
        _list(
            "nidm-results",
            "/nidm_results/",
            "Packs of NIDM results",
            NIDM_RESULTS,
            2 * _IMAGE_BYTES,
        ),
        Description(
            name="files",
            summary="The files of images: collection_<id>/image_<id>.nii.gz",
            item="files of images",
            item_bytes=850_000,  # a map of the whole brain in 2 mm
            files="always",
            filters=FILTERS,
            schema=SCHEMA,
            row_key="id",
            source=lambda filters: Files(filters=filters),
            table=FilesTable,
        ),
    )

    def __init__(
        self,
        token: str | None = None,
        *,
        private: str | Iterable[str] = (),
        **options: Any,
    ) -> None:
        tokens = [one.strip() for one in members(private)]
        if any(not PRIVATE_TOKEN.fullmatch(one) for one in tokens):
            raise ConfigurationError(
                "expected tokens of private collections, 8 capital letters each, got "
                "something else: only those lead anywhere"
            )
        super().__init__(auth=login(token), refusal=refusal, **options)
        self.exchange.given = tuple(tokens)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """A client set up by the environment.

        ``NEUROVAULT_TOKEN``, ``NEUROVAULT_PRIVATE`` (with commas between several), and
        ``ASYNCFETCH_NEUROVAULT_URL``.
        """
        if os.environ.get("NEUROVAULT_TOKEN"):
            options.setdefault("token", os.environ["NEUROVAULT_TOKEN"])
        if os.environ.get("NEUROVAULT_PRIVATE"):
            tokens = os.environ["NEUROVAULT_PRIVATE"].split(",")
            options.setdefault("private", tokens)
        return super().from_env(**options)

    async def load(self, id: Any = None, /, **filters: Any) -> Any:  # noqa: A002
        """Images as nibabel has them, with their records (see ``files.load``)."""
        return await self.files.load(id, **filters)

    # --- what is one's own ------------------------------------------------------------

    async def user(self) -> Record:
        """The account that the token belongs to."""
        return await self._call("GET", "/user/")

    async def my_collections(self) -> list[Record]:
        """Collections that the token's user may change, private ones too."""
        found: dict[int, Record] = {}
        offset: int | None = 0
        while offset is not None:
            query = {"limit": str(PAGE), "offset": str(offset)}
            body = await self._call("GET", target("/my_collections/", query))
            found |= {one["id"]: one for one in body["results"]}
            has_more = body.get("next") and body["results"]
            offset = offset + len(body["results"]) if has_more else None
        return list(found.values())

    async def create_collection(
        self,
        name: str | None = None,
        *,
        DOI: str | None = None,  # noqa: N803 - the service's own word
        **fields: Any,
    ) -> Record:
        """Make a collection; its record.

        Parameters
        ----------
        name
            One that no other collection has.
        DOI
            Of a paper, in place of a name: the service looks up the rest.
        **fields
            Any field of a collection.

        Raises
        ------
        ResponseError
            The service says no, with its words.
        """
        if (name is None) is (DOI is None):
            raise ConfigurationError("expected either name or DOI of a collection")
        given = {"name": name} if DOI is None else {"DOI": DOI}
        sent = {**given, **_fields(fields, COLLECTION, "a collection")}
        return await self._call("POST", "/collections/", sent)

    async def update_collection(self, collection_id: int, **fields: Any) -> Record:
        """Change fields of a collection of one's own; its record then."""
        sent = _fields(fields, COLLECTION, "a collection")
        number = _number(collection_id)
        try:
            return await self._call("PATCH", f"/collections/{number}/", sent)
        except (NotFound, AuthenticationError) as error:
            if getattr(error, "status", 0) not in {403, 404}:
                raise
        # A private one is changed under another address; nothing was, so far.
        changed = await self._call("PATCH", f"/my_collections/{number}/", sent)
        if not changed.get("private"):
            self.exchange.private.pop(number, None)  # its number answers by now
        return changed

    async def add_image(
        self,
        collection_id: int,
        file: str | Path | None = None,
        *,
        name: str,
        map_type: str,
        modality: str,
        **fields: Any,
    ) -> Record:
        """Send an image to a collection of one's own; its record.

        It is sent once. When the answer does not come, or is a 500, the image may be
        stored all the same: the error says what is in the collection by now.

        Parameters
        ----------
        file
            A NIfTI file; one that is not compressed is sent compressed. None with
            ``surface_left_file`` and ``surface_right_file``.
        map_type, modality
            Codes or names: ``Z`` or ``Z map``.
        **fields
            Any field of an image; every other one becomes metadata of its own.

        Raises
        ------
        ConfigurationError
            The file or a field is not what the service takes; nothing was sent.
        ResponseError, TransportError
            The service says no, or nothing. ``stored`` has the ids of images of that
            name that the collection has.
        """
        number = _number(collection_id)
        given = {"name": name, "map_type": map_type, "modality": modality, **fields}
        paths = {"file": file, **{k: given.pop(k, None) for k in _FILES_SENT[1:]}}
        files = {k: Path(one) for k, one in paths.items() if one is not None}
        if not files or (len(files) == 2 and file is not None):
            raise ConfigurationError(
                "expected file, or surface_left_file and surface_right_file"
            )
        texts = [Part(name=k, value=one) for k, one in _form(given).items()]
        # Named here, so that a cancellation finds it whatever the thread has done.
        folder = Path(tempfile.gettempdir(), f"asyncfetch-{secrets.token_hex(8)}")
        try:
            if file is not None:
                files["file"] = await in_thread(lambda: _packed(files["file"], folder))
            parts = [Part(name=k, value=one) for k, one in files.items()]
            where = f"/collections/{number}/images/"
            try:
                return await self._call("POST", where, (*texts, *parts))
            except (ResponseError, TransportError, IntegrityError) as error:
                if getattr(error, "status", 500) < 500:
                    raise
                raise await self._maybe_stored(error, number, name) from error
        finally:
            await surely_in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def update_image(self, image_id: int | str, **fields: Any) -> Record:
        """Change fields of an image of one's own; its record then."""
        where = _one("/images/", image_id).target
        sent = {name: _coded(name, one) for name, one in fields.items()}
        for name, one in sent.items():
            _check_own(name, one)
        return await self._call("PATCH", where, sent)

    async def _maybe_stored(
        self, error: AsyncfetchError, number: int, name: str
    ) -> AsyncfetchError:
        """The error of an upload, and what the collection has by now."""
        stored: list[int] = []
        try:
            there = await self.images.get(collection_id=number, name=name)
            stored = [one["id"] for one in there]
        except AsyncfetchError as other:
            says = f"and what the collection has could not be seen ({other})"
        else:
            says = (
                f"and the collection has image {', '.join(map(str, stored))} of that "
                "name: look there before it is sent again"
                if stored
                else "and no image of that name can be read in the collection"
            )
        fields = {**vars(error), "stored": tuple(stored)}
        return type(error)(f"the upload may be stored: {error}; {says}", **fields)

    async def _call(
        self, method: str, where: str, body: Record | tuple[Part, ...] | None = None
    ) -> Record:
        """What the service answers to a call that needs a token."""
        if not self.exchange.has_auth:
            raise AuthenticationError(
                f"{method} {where.partition('?')[0]} needs a token: pass token to "
                "NeuroVault, or set NEUROVAULT_TOKEN and use NeuroVault.from_env()"
            )
        request = Request(
            target=where,
            method=method,
            body=json.dumps(body) if isinstance(body, Mapping) else body,
        )
        answer = await self.exchange.ask(
            request, lambda chunks, _: document(chunks), interactive=True
        )
        found: Record = answer.value
        return found


def _number(collection_id: Any) -> int:
    number = plain(collection_id)
    if type(number) is not int:
        raise ConfigurationError(
            f"expected the number of a collection, got {collection_id!r}"
        )
    return number


def _fields(fields: Mapping[str, Any], known: Iterable[str], what: str) -> Record:
    """Fields that can be sent."""
    names = list(known)
    for name in fields:
        if name not in names:
            raise ConfigurationError(
                f"{what} has no field {name!r}{close(name, names)}"
            )
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"expected fields of {what} that are plain JSON: {error}"
        ) from error
    return dict(fields)


def _coded(name: str, value: Any) -> Any:
    """A value of an enumeration by its code, from its code or its name."""
    codes = CODES.get(name)
    if codes is None or value is None:
        return plain(value)
    text = str(value).strip()
    if text in codes:
        return text
    by_name = {one.casefold(): code for code, one in codes.items()}
    by_name |= {code.casefold(): code for code in codes}
    if text.casefold() not in by_name:
        words = [f"{c} ({one})" if c != one else c for c, one in codes.items()]
        raise ConfigurationError(
            f"expected one of {', '.join(words)} for {name}, got {value!r}"
            f"{close(text, [*codes, *codes.values()])}"
        )
    return by_name[text.casefold()]


def _check_own(name: str, value: Any) -> None:
    """Refuse what the server would store and never give again.

    A list in an image's own metadata makes every page fail that the image is on. The
    server reads texts as JSON, too.
    """
    if name in IMAGE:
        return
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, list | tuple | set | dict):
        raise ConfigurationError(
            f"expected a text, a number or a flag for {name}, got "
            f"{type(value).__name__}: the server cannot give images with such metadata"
        )


def _form(given: Mapping[str, Any]) -> dict[str, str]:
    """Fields of an image as texts of a form."""
    texts = {}
    for name, one in given.items():
        value = _coded(name, one)
        if value is None:
            continue
        _check_own(name, value)
        if not isinstance(value, str | bool | int | float):
            raise ConfigurationError(
                f"expected a text, a number or a flag for {name}, got "
                f"{type(value).__name__}"
            )
        texts[name] = value if isinstance(value, str) else json.dumps(value)
    return texts


def _packed(path: Path, folder: Path) -> Path:
    """A NIfTI file as the server takes it: whole, and compressed. Blocks.

    Raises
    ------
    ConfigurationError
        It is none.
    """
    is_packed = path.name.lower().endswith(".gz")
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ConfigurationError(f"expected a .nii or .nii.gz file, got {path}")
    try:
        with path.open("rb") as file:
            proved(iter(lambda: file.read(1 << 20), b""), path.name)
        if is_packed:
            return path
        folder.mkdir(mode=0o700)
        made = folder / f"{path.name}.gz"
        with path.open("rb") as read, gzip.open(made, "wb", 6) as write:
            shutil.copyfileobj(read, write)
    except OSError as error:
        raise ConfigurationError(f"expected a file to send, got {error}") from error
    except DecodeError as error:
        raise ConfigurationError(f"expected a whole NIfTI file: {error}") from error
    return made
