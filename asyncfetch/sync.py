"""The same clients, blocking: for plain scripts, and inside a running event loop too.

::

    from asyncfetch import sync

    with sync.Neuroscout() as api:
        runs = api.runs.get(dataset_name="SherlockMerlin", output_type="df")
        with api.predictor_events.stream(dataset_id=5) as batches:
            for batch in batches:
                ...
        report = sync.download(api.runs.plan(), "runs/")

Nothing is written twice: whatever the asynchronous object has, its blocking face has.
Each client runs its calls in an event loop of its own, in one thread, from the first
call until the client is closed, dropped, or the program ends.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from asyncfetch.services import client_class

if TYPE_CHECKING:
    from asyncfetch._model import Report

__all__ = ["Alyx", "NeuroMorpho", "NeuroVault", "Neuroscout", "Rest", "download"]


class _Loop:
    """The event loop of one client, in its thread; begins when it is first needed.

    Parameters
    ----------
    aclose
        What closes the client, in its loop.
    """

    def __init__(self, aclose: Callable[[], Awaitable[None]]) -> None:
        self._aclose = aclose
        self._guard = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._stop: Callable[[], object] = bool

    def portal(self) -> BlockingPortal:
        """What brings calls into the loop."""
        with self._guard:
            if self._portal is None:
                stack = ExitStack()
                self._portal = stack.enter_context(start_blocking_portal("asyncio"))
                # Also when the client is dropped, and at the end of the program.
                self._stop = weakref.finalize(
                    self,
                    _end,
                    self._portal,
                    self._portal.call(threading.get_ident),
                    self._aclose,
                    stack,
                )
            return self._portal

    def call(self, call: Callable[[], Any]) -> Any:
        """What *call* gives, awaited if it is to be.

        An interruption (Ctrl-C) cancels it, and is raised when it has cleaned up.
        """
        begun, ended = threading.Event(), threading.Event()

        async def run() -> Any:
            begun.set()
            try:
                value = call()
                return await value if inspect.isawaitable(value) else value
            finally:
                ended.set()

        future = self.portal().start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            if future.cancel() and begun.is_set():
                ended.wait()
            raise

    def close(self) -> None:
        """Close the client and end the thread; the next call begins another."""
        with self._guard:
            stop, self._stop, self._portal = self._stop, bool, None
        stop()


def _end(
    portal: BlockingPortal,
    thread: int,
    aclose: Callable[[], Awaitable[None]],
    stack: ExitStack,
) -> None:
    if threading.get_ident() == thread:
        # Dropped by a collection of garbage in the loop's own thread, which cannot wait
        # for itself. To stop does not suspend, so one step is all of it.
        with suppress(StopIteration):
            portal.stop().__await__().__next__()
        return
    with stack:
        portal.call(aclose)


class _Blocking:
    """The blocking face of an asynchronous object."""

    def __init__(self, target: Any, loop: _Loop) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_loop", loop)
        object.__setattr__(self, "_entered", [])

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if inspect.isawaitable(value):
            return _faced(self._loop.call(lambda: value), self._loop)
        if not callable(value) or inspect.isclass(value):
            return _faced(value, self._loop)

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = [_bare(one) for one in args]
            named = {key: _bare(one) for key, one in kwargs.items()}
            found = self._loop.call(lambda: value(*given, **named))
            return _faced(found, self._loop)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, _bare(value))

    def __dir__(self) -> list[str]:
        return dir(self._target)

    def __repr__(self) -> str:
        return repr(self._target)

    def __enter__(self) -> Any:
        manager: AbstractContextManager[Any]
        manager = self._loop.portal().wrap_async_context_manager(self._target)
        found = manager.__enter__()
        self._entered.append(manager)
        return self if found is self._target else _faced(found, self._loop)

    def __exit__(self, *exception: object) -> bool | None:
        manager: Any = self._entered.pop()
        done: bool | None = manager.__exit__(*exception)
        return done

    def __iter__(self) -> Iterator[Any]:
        steps = self._target.__aiter__()
        while True:
            try:
                value = self._loop.call(steps.__anext__)
            except StopAsyncIteration:
                return
            yield _faced(value, self._loop)


def _faced(value: Any, loop: _Loop) -> Any:
    """*value*, or the blocking face of one that is asynchronous."""
    if isinstance(value, list):
        return [_faced(one, loop) for one in value] if _has_live(value) else value
    return _Blocking(value, loop) if _is_live(value) else value


def _has_live(values: list[Any]) -> bool:
    return bool(values) and _is_live(values[0])


def _is_live(value: Any) -> bool:
    kind: Any = type(value)
    return kind.__module__.startswith("asyncfetch.") and _kind_is_live(kind)


@functools.cache
def _kind_is_live(kind: Hashable) -> bool:
    # A plan has nothing to await; it belongs to the loop of its client all the same.
    return (
        getattr(kind, "__name__", None) == "Plan"
        or hasattr(kind, "__aenter__")
        or hasattr(kind, "__aiter__")
        or any(
            inspect.iscoroutinefunction(member)
            for name, member in inspect.getmembers(kind)
            if not name.startswith("_")
        )
    )


def _bare(value: Any) -> Any:
    """*value* as the asynchronous object takes it."""
    if isinstance(value, _Blocking):
        return value._target  # noqa: SLF001 - the other side of the same thing
    return [_bare(one) for one in value] if isinstance(value, list) else value


class _Client(_Blocking):
    _service: ClassVar[str]

    def __init__(self, *args: Any, **options: Any) -> None:
        client = client_class(self._service)(*args, **options)
        super().__init__(client, _Loop(client.aclose))

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """A client set up by the environment."""
        client = client_class(cls._service).from_env(**options)
        made = cls.__new__(cls)
        _Blocking.__init__(made, client, _Loop(client.aclose))
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. The client may be used again."""
        self._loop.close()


class Neuroscout(_Client):
    """:class:`asyncfetch.Neuroscout`, blocking."""

    _service = "neuroscout"


class Alyx(_Client):
    """:class:`asyncfetch.Alyx`, blocking."""

    _service = "alyx"


class NeuroMorpho(_Client):
    """:class:`asyncfetch.NeuroMorpho`, blocking."""

    _service = "neuromorpho"


class NeuroVault(_Client):
    """:class:`asyncfetch.NeuroVault`, blocking."""

    _service = "neurovault"


class Rest(_Client):
    """:class:`asyncfetch.Rest`, blocking."""

    _service = "rest"


def download(plan: Any, dest: Any, **options: Any) -> Report:
    """:func:`asyncfetch.download`, blocking; *plan* is of one of these clients."""
    from asyncfetch._engine import download as fill  # noqa: PLC0415 - loads pyarrow
    from asyncfetch.errors import ConfigurationError  # noqa: PLC0415

    if not isinstance(plan, _Blocking):
        raise ConfigurationError(
            "expected a plan of a client of asyncfetch.sync, got one of another"
        )
    report: Report = plan._loop.call(  # noqa: SLF001
        lambda: fill(plan._target, dest, **options)  # noqa: SLF001
    )
    return report
