"""What each web API is like: its client, tables, filters, paging and schemas.

No sockets, clocks or tasks in here. This module knows the services by name only, so
that a dataset's plan finds its table again and nothing is imported before it is used.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from asyncfetch.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncfetch.services._table import Client

SERVICES = {
    "neuroscout": ("asyncfetch.services.neuroscout", "Neuroscout"),
    "neuromorpho": ("asyncfetch.services.neuromorpho", "NeuroMorpho"),
    "alyx": ("asyncfetch.services.alyx", "Alyx"),
    "neurovault": ("asyncfetch.services.neurovault", "NeuroVault"),
}

# One client for whatever is none of these.
_ANY = {"rest": ("asyncfetch.services.rest", "Rest")}


def client_class(service: str) -> type[Client]:
    """The client of the service called *service*.

    Raises
    ------
    ConfigurationError
        There is no such service; the message has the nearest names.
    """
    try:
        module, name = {**SERVICES, **_ANY}[service]
    except KeyError:
        near = difflib.get_close_matches(service, SERVICES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigurationError(
            f"no service {service!r}{hint}; there are {', '.join(SERVICES)}, and to "
            "show and fetch any URL like https://host/path will do, too"
        ) from None
    found: type[Client] = getattr(import_module(module), name)
    return found
