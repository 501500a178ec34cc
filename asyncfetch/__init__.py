"""Neuroscience web APIs as Arrow record batches and Parquet datasets.

>>> async with asyncfetch.Neuroscout() as api:  # doctest: +SKIP
...     datasets = await api.datasets.get(output_type="df")

The names below load what they need when they are first used, so that importing the
package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asyncfetch.errors import (
    AsyncfetchError,
    AuthenticationError,
    ConfigurationError,
    DatasetError,
    DecodeError,
    IntegrityError,
    ItemError,
    NotFound,
    ResponseError,
    TransportError,
)

if TYPE_CHECKING:
    from asyncfetch import sync
    from asyncfetch._compact import Compaction, compact
    from asyncfetch._dataset import View, open_dataset
    from asyncfetch._engine import download
    from asyncfetch._model import Limits, Report
    from asyncfetch._objects import ObjectStore
    from asyncfetch._version import __version__
    from asyncfetch.services.alyx import Alyx
    from asyncfetch.services.neuromorpho import NeuroMorpho
    from asyncfetch.services.neuroscout import Neuroscout
    from asyncfetch.services.neurovault import NeuroVault
    from asyncfetch.services.rest import (
        ApiKey,
        Basic,
        Bearer,
        OAuth2ClientCredentials,
        Rest,
        Token,
    )

__all__ = [
    "Alyx",
    "ApiKey",
    "AsyncfetchError",
    "AuthenticationError",
    "Basic",
    "Bearer",
    "Compaction",
    "ConfigurationError",
    "DatasetError",
    "DecodeError",
    "IntegrityError",
    "ItemError",
    "Limits",
    "NeuroMorpho",
    "NeuroVault",
    "Neuroscout",
    "NotFound",
    "OAuth2ClientCredentials",
    "ObjectStore",
    "Report",
    "ResponseError",
    "Rest",
    "Token",
    "TransportError",
    "View",
    "__version__",
    "compact",
    "download",
    "open_dataset",
    "sync",
]

_LAZY = {
    "Alyx": "asyncfetch.services.alyx",
    "ApiKey": "asyncfetch.services.rest",
    "Basic": "asyncfetch.services.rest",
    "Bearer": "asyncfetch.services.rest",
    "Compaction": "asyncfetch._compact",
    "Limits": "asyncfetch._model",
    "NeuroMorpho": "asyncfetch.services.neuromorpho",
    "NeuroVault": "asyncfetch.services.neurovault",
    "Neuroscout": "asyncfetch.services.neuroscout",
    "OAuth2ClientCredentials": "asyncfetch.services.rest",
    "ObjectStore": "asyncfetch._objects",
    "Report": "asyncfetch._model",
    "Rest": "asyncfetch.services.rest",
    "Token": "asyncfetch.services.rest",
    "View": "asyncfetch._dataset",
    "__version__": "asyncfetch._version",
    "compact": "asyncfetch._compact",
    "download": "asyncfetch._engine",
    "open_dataset": "asyncfetch._dataset",
}


def __getattr__(name: str) -> Any:
    if name == "sync":
        return import_module("asyncfetch.sync")
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'asyncfetch' has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
