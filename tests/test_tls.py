"""Certificates are always verified; weak servers and proxies are met on demand."""

import contextlib
import logging
import socket
import ssl
import threading
import urllib.request
from dataclasses import dataclass, field
from functools import partial

import anyio
import pytest
import trustme
from yarl import URL

from asyncfetch import _auth
from asyncfetch._model import Request
from asyncfetch._transport import Transport, is_loopback
from asyncfetch.errors import ConfigurationError, TransportError
from tests.conftest import answer, exchange, look, open_wire, read_whole

pytestmark = pytest.mark.anyio

# Made by ``openssl dhparam 1024``: a group as small as NeuroMorpho.Org had until 2024.
WEAK_GROUP = """
-----BEGIN DH PARAMETERS-----
MIGHAoGBAMWiH1qwiaVAmgzlNhEtgDV5H+r2RSjYsaQhn+abcLFdia4qEMGAcaAx
sq1gvSBi2RU26tSvf5Q9Axelsza/hzGnPClls2UXUlgDx18oh6xHBvyVFlTYVQaa
EGW+1ptvDp6w1dUkiSqtlyg60m1Qq+qn4hJNeTWiu+o2+uOzbOj3AgEC
-----END DH PARAMETERS-----
"""
DHE = "DHE-RSA-AES256-GCM-SHA384"
ECDHE = "ECDHE-RSA-AES256-GCM-SHA384"
NAMES = ("127.0.0.1", "localhost", "service.example")


@dataclass
class Authority:
    """A root, an intermediate and a server's certificate, as files."""

    root: str
    intermediate: str
    leaf: trustme.LeafCert = field(repr=False)

    def context(self, *, whole=True):
        """What the server offers: its chain, or its own certificate alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if whole:
            self.leaf.configure_cert(context)
        else:
            pems = (self.leaf.private_key_pem, self.leaf.cert_chain_pems[0])
            both = trustme.Blob(b"".join(pem.bytes() for pem in pems))
            with both.tempfile() as path:
                context.load_cert_chain(path)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    root = trustme.CA(key_type=trustme.KeyType.RSA)
    between = root.create_child_ca(key_type=trustme.KeyType.RSA)
    leaf = between.issue_cert(*NAMES, key_type=trustme.KeyType.RSA)
    root.cert_pem.write_to_path(folder / "root.pem")
    between.cert_pem.write_to_path(folder / "between.pem")
    return Authority(str(folder / "root.pem"), str(folder / "between.pem"), leaf)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.fixture(autouse=True)
def _servers_say_nothing(caplog):
    # A handshake that the client breaks off is an error to the server.
    caplog.set_level(logging.CRITICAL, "anyio")


async def ask(url, **options):
    asker = exchange(url, **options)
    try:
        answer = await asker.ask(Request(target="/x"), read_whole, interactive=True)
        return answer.value
    finally:
        await asker.aclose()


async def test_a_certificate_of_nobody_known_is_refused_at_once(authority):
    async with open_wire(answer(), tls=authority.context()) as wire:
        with pytest.raises(TransportError, match=r"bad certificate: .*ca_file=") as e:
            await ask(wire.url)
        assert e.value.attempts == 1
        assert not wire.requests


async def test_a_ca_file_is_trusted(authority):
    async with open_wire(answer(b"[1]"), tls=authority.context()) as wire:
        assert await ask(wire.url, ca_file=authority.root) == b"[1]"


async def test_the_environments_certificates_are_trusted(authority, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", authority.root)
    async with open_wire(answer(b"[1]"), tls=authority.context()) as wire:
        assert await ask(wire.url) == b"[1]"


async def test_a_certificate_for_other_names_is_refused():
    elsewhere = trustme.CA()
    leaf = elsewhere.issue_cert("elsewhere.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    with elsewhere.cert_pem.tempfile() as root:
        async with open_wire(answer(), tls=context) as wire:
            with pytest.raises(TransportError, match="not good for this host") as e:
                await ask(wire.url, ca_file=root)
            assert e.value.attempts == 1
            assert not wire.requests


async def test_a_missing_intermediate_is_answered_with_it(authority):
    context = await look(lambda: authority.context(whole=False))
    async with open_wire(answer(b"[1]"), tls=context) as wire:
        with pytest.raises(TransportError, match="ca_file= with the certificates"):
            await ask(wire.url, ca_file=authority.root)
        assert await ask(wire.url, ca_file=authority.intermediate) == b"[1]"


@pytest.mark.parametrize("text", [None, "no certificate\n"])
async def test_a_ca_file_that_is_none_is_said(tmp_path, text):
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match="expected a PEM file of cert"):
        await ask("https://127.0.0.1:9", ca_file=str(path))


def weak(authority, *ciphers):
    context = authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(":".join(ciphers) + ":@SECLEVEL=0")
    with trustme.Blob(WEAK_GROUP.encode()).tempfile() as path:
        context.load_dh_params(path)
    return context


@pytest.mark.parametrize(
    ("ciphers", "setting", "says"),
    [
        ((DHE,), None, 'too weak: pass tls_compat="no-dhe"'),
        ((DHE,), "seclevel1", None),
        ((DHE, ECDHE), None, 'too weak: pass tls_compat="no-dhe"'),
        ((DHE, ECDHE), "no-dhe", None),
        ((DHE, ECDHE), "seclevel1", None),
        ((DHE, "AES256-GCM-SHA384"), "no-dhe", None),
    ],
)
async def test_a_weak_key_exchange_is_met_on_demand(authority, ciphers, setting, says):
    context = await look(lambda: weak(authority, *ciphers))
    async with open_wire(answer(b"[1]"), tls=context) as wire:
        options = {"ca_file": authority.root, "tls_compat": setting}
        if says is None:
            assert await ask(wire.url, **options) == b"[1]"
            # And certificates are verified all the same.
            with pytest.raises(TransportError, match="bad certificate"):
                await ask(wire.url, tls_compat=setting)
        else:
            with pytest.raises(TransportError, match=says) as caught:
                await ask(wire.url, **options)
            assert caught.value.attempts == 1


@contextlib.contextmanager
def shaking_hands(context):
    """A server that says why a handshake fails, which one on an event loop does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    with accepted, contextlib.suppress(ssl.SSLError):
                        context.wrap_socket(accepted, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # ends accept()
            thread.join()


def test_a_server_with_nothing_but_a_weak_key_exchange_is_said(authority):
    with shaking_hands(weak(authority, DHE)) as url:
        for setting, says in ((None, "no-dhe"), ("no-dhe", "no other.*seclevel1")):
            options = {"ca_file": authority.root, "tls_compat": setting}
            with pytest.raises(TransportError, match=says) as caught:
                anyio.run(partial(ask, url, **options))
            assert caught.value.attempts == 1


async def test_a_weak_key_exchange_is_met_for_one_host_only(authority):
    context = await look(lambda: weak(authority, DHE))
    async with (
        open_wire(answer(b"[1]"), tls=context) as wire,
        open_wire(answer(b"[1]"), tls=context) as other,
    ):
        known = exchange(wire.url, ca_file=authority.root, tls_compat="seclevel1")
        await known.ask(Request(target="/x"), read_whole)
        with pytest.raises(TransportError, match="too weak"):
            await ask(other.url, ca_file=authority.root)
        await known.aclose()


# Proxies ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_proxy(behind, *, refuse=None):
    """A proxy on loopback that leads every host to the port of *behind*."""
    heads = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def pump(source, sink):
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for some in source:
                await sink.send(some)
        with contextlib.suppress(OSError, anyio.BrokenResourceError):
            await sink.send_eof()

    async def serve(client):
        async with client:
            head = b""
            while b"\r\n\r\n" not in head:
                try:
                    head += await client.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
            heads.append(head)
            if refuse is not None:
                await client.send(refuse)
                return
            target = await anyio.connect_tcp("127.0.0.1", URL(behind).port)
            async with target, anyio.create_task_group() as group:
                if head.startswith(b"CONNECT "):
                    await client.send(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    await target.send(head)
                group.start_soon(pump, client, target)
                await pump(target, client)
                group.cancel_scope.cancel()

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{port}", heads
        group.cancel_scope.cancel()


async def test_http_goes_through_the_environments_proxy(monkeypatch):
    async with open_wire(answer(b"[1]")) as wire, open_proxy(wire.url) as (url, heads):
        monkeypatch.setenv("http_proxy", url)
        assert await ask("http://service.example") == b"[1]"
        assert heads[0].startswith(b"GET http://service.example/x HTTP/1.1\r\n")


@pytest.mark.parametrize("way", ["https_proxy", "ALL_PROXY", "argument"])
async def test_https_goes_through_a_tunnel_that_sees_no_credentials(
    authority, monkeypatch, way
):
    async with (
        open_wire(answer(b"[1]"), tls=authority.context()) as wire,
        open_proxy(wire.url) as (url, heads),
    ):
        options = {"ca_file": authority.root, "auth": _auth.token("the-secret")}
        proxy = url.replace("//", "//me:pass-word@")
        if way == "argument":
            options["proxy"] = proxy
        else:
            monkeypatch.setenv(way, proxy)
        assert await ask("https://service.example", **options) == b"[1]"
        assert wire.header("Authorization") == "Bearer the-secret"
        assert wire.header("Proxy-Authorization") is None
        assert heads[0].startswith(b"CONNECT service.example:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic bWU6cGFzcy13b3Jk" in heads[0]
        assert b"the-secret" not in heads[0]
        assert len(heads) == 1


async def test_loopback_never_goes_through_the_environments_proxy(monkeypatch):
    async with open_wire(answer(b"[1]")) as wire, open_proxy(wire.url) as (url, heads):
        monkeypatch.setenv("http_proxy", url)
        assert await ask(wire.url) == b"[1]"
        assert await ask(wire.url.replace("127.0.0.1", "localhost")) == b"[1]"
        assert not heads
        # What is asked for by argument is meant.
        assert await ask(wire.url, proxy=url) == b"[1]"
        assert len(heads) == 1


def proxy_for(url):
    return Transport(URL(url), user_agent="x", timeout=1)._proxy_for(URL(url))


def test_hosts_that_the_environment_names_go_without_a_proxy(monkeypatch):
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", "lab.example,other.example:8443")
    assert proxy_for("https://far.example") == URL("http://proxy.example:3128")
    assert proxy_for("https://lab.example") is None
    assert proxy_for("https://data.lab.example") is None
    assert proxy_for("https://other.example:8443") is None
    assert proxy_for("https://other.example") is not None
    assert proxy_for("http://far.example") is None


async def test_a_proxy_is_looked_up_once_for_a_host(monkeypatch):
    looked = []
    real = urllib.request.getproxies
    monkeypatch.setattr(
        urllib.request, "getproxies", lambda: looked.append(1) or real()
    )
    async with open_wire(answer(b"[1]")) as wire, open_proxy(wire.url) as (url, _):
        monkeypatch.setenv("http_proxy", url)
        asker = exchange("http://service.example")
        for _ in range(5):
            await asker.ask(Request(target="/x"), read_whole)
        await asker.aclose()
        assert len(wire.requests) == 5
    assert len(looked) == 1


@pytest.mark.parametrize(
    "proxy", ["socks5://me:pass-word@proxy:1080", "http://", "", "http://me:pass-word@"]
)
def test_a_proxy_that_cannot_be_used_is_said_without_its_password(proxy):
    with pytest.raises(ConfigurationError, match="expected proxy like http") as caught:
        exchange("https://service.example", proxy=proxy)
    assert "pass-word" not in str(caught.value)


async def test_a_proxy_that_is_not_there_is_said_without_its_password(monkeypatch):
    async with open_proxy("") as (url, _):
        pass
    url = url.replace("//", "//me:pass-word@")
    with pytest.raises(TransportError, match="no connection to the proxy") as caught:
        await ask("http://service.example", proxy=url)
    assert "pass-word" not in str(caught.value)


async def test_a_proxy_that_wants_a_password_is_said_at_once():
    no = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
    async with open_proxy("", refuse=no) as (url, heads):
        with pytest.raises(TransportError, match=r"the proxy refused: .*user:password"):
            await ask("https://service.example", proxy=url)
        assert len(heads) == 1


@pytest.mark.parametrize(
    "host", ["localhost", "127.3.2.1", "::1", "a.localhost", "LOCALHOST."]
)
def test_this_machine_is_known(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["127.example.com", "localhost.example.com", "128.0.0.1", ""]
)
def test_another_machine_is_another(host):
    assert not is_loopback(host)
