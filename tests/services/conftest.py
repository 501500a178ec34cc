"""What a service's tests have of their own: one event loop.

Loops differ in what the engine, the exchange and the transport do with them, and the
tests of these run in all of them. A service is pure code on top.
"""

import pytest


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"
