"""Every exception that asyncfetch raises.

::

    AsyncfetchError
    ├── ConfigurationError (ValueError)   the call is wrong: fix the argument
    ├── NotFound (LookupError)            the service says that it has no such thing
    ├── AuthenticationError               the service wants (other) credentials
    ├── TransportError (OSError)          nothing usable came back
    ├── ResponseError                     an answer came, and it says no
    ├── IntegrityError                    an answer came, and it is not whole
    ├── DecodeError (ValueError)          whole, but not what the service promises
    ├── ItemError                         one item of a plan failed; ``cause`` says why
    └── DatasetError                      the dataset on disk cannot be used like this

A message is one line: expected, got, where, what to do. Every error pickles, and
none carries a secret.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AsyncfetchError",
    "AuthenticationError",
    "ConfigurationError",
    "DatasetError",
    "DecodeError",
    "IntegrityError",
    "ItemError",
    "NotFound",
    "ResponseError",
    "TransportError",
]


class AsyncfetchError(Exception):
    """Root of the tree.

    Parameters
    ----------
    message
        One line: expected, got, where, what to do.
    details
        Attributes of the subclass, by name. They survive pickling.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.__dict__.update(details)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(
    kind: type[AsyncfetchError], args: tuple[Any, ...], details: dict[str, Any]
) -> AsyncfetchError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(details)
    return error


class ConfigurationError(AsyncfetchError, ValueError):
    """The call cannot be carried out as it was made; nothing was sent."""


class NotFound(AsyncfetchError, LookupError):  # noqa: N818 - a fact about the service
    """The service answered that it has no such record or file."""


class AuthenticationError(AsyncfetchError):
    """The service refused the credentials, or wants some (401, 403).

    Attributes
    ----------
    status
        The HTTP status.
    excerpt
        The first characters of the body.
    """

    status: int = 0
    excerpt: str = ""


class TransportError(AsyncfetchError, OSError):
    """Nothing usable came back: no connection, a reset, a time-out."""


class ResponseError(AsyncfetchError):
    """An answer came and says no.

    Attributes
    ----------
    status
        The HTTP status, or the one that an error object under a 200 names.
    excerpt
        The first characters of the body.
    retry_after
        Seconds that the server asked to wait, or None.
    """

    status: int = 0
    excerpt: str = ""
    retry_after: float | None = None


class IntegrityError(AsyncfetchError):
    """An answer came and its bytes are not whole, or are not data at all."""


class DecodeError(AsyncfetchError, ValueError):
    """The bytes are whole and do not hold what the service promises.

    Attributes
    ----------
    path
        Where in the body, as a JSON path (``$[3].onset``) or a line.
    code
        A short stable word for the kind of trouble, as items record it.
    """

    path: str = "$"
    code: str = "decode"


class ItemError(AsyncfetchError):
    """One item of a plan failed.

    Attributes
    ----------
    key
        The item's key.
    cause
        What happened to it.
    report
        What the run had come to when it ended: an ``asyncfetch.Report``, or None.
    """

    key: str = ""
    cause: AsyncfetchError | None = None
    report: Any = None


class DatasetError(AsyncfetchError):
    """A dataset holds another plan, belongs to another writer, or is damaged."""
