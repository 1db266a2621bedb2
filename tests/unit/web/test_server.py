"""The server with valid, malformed and slow clients; TLS, certificates and passwords."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import http.client
import itertools
import logging
import selectors
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest
import trustme

from tests.support.clock import SAFETY_SECONDS, ManualLoop, until
from tracer.web import Access, Request, Response, Server, basic_auth, connection, server
from tracer.web.cpu_budget import SAVED_SECONDS, SHARE, Budget

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$abcdefghijklmnopqrstuu").decode()
"""With a fixed salt: it is part of test ids, and every worker must collect the same."""
BODY = b"hello " * 100


def app(ask: Request) -> Response:
    if ask.path == "/fail":
        raise ValueError("on purpose")
    return Response(200, b"x" * int(ask.fields["n"]) if "n" in ask.fields else BODY)


@contextlib.contextmanager
def serving(
    access: Access | None = None, host: str = "127.0.0.1", loop: ManualLoop | None = None
) -> Iterator[int]:
    with Server((host, 0), app, access, loop) as made:
        yield made.port


def raw(port: int, sent: bytes, seconds: float = SAFETY_SECONDS) -> bytes:
    """Send bytes and return the response, up to the end of the connection."""
    got = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=seconds) as client,
        contextlib.suppress(ConnectionError),
    ):
        client.sendall(sent)
        while piece := client.recv(65536):
            got += piece
    return got


HEAD = b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nhello", b"413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"413"),
        (b"HEAD / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n", b"505"),
        (HEAD + b"\r\nnonsense\r\n\r\n", b"400"),
        (HEAD + b"\r\n" + HEAD + b"Content-Length: 5\r\n\r\nhello", b"413"),
    ],
)
def test_head_that_is_refused_is_no_defect(
    sent: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has logged in yet, so anyone could fill the log with tracebacks."""
    with serving() as port:
        got = raw(port, sent)
    assert b"HTTP/1.1 " + status in got
    assert "a defect of rmapd" not in caplog.text


def get(
    port: int, path: str = "/", context: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    kind = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=SAFETY_SECONDS, context=context)
        if context
        else None
    )
    client = kind or http.client.HTTPConnection("127.0.0.1", port, timeout=SAFETY_SECONDS)
    with contextlib.closing(client):
        client.request(
            "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = client.getresponse()
        return answer.status, answer.read(), dict(answer.headers)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", b"505"),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"413",
        ),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", b"413"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
            b"421",
        ),
    ],
)
def test_malformed_request_is_refused(sent: bytes, status: bytes) -> None:
    with serving() as port:
        got = raw(port, sent)
        assert got.split(b" ", 2)[1] == status, got
        assert b"X-Content-Type-Options: nosniff" in got
        assert get(port)[0] == 200


def test_connection_is_kept_and_pipelined() -> None:
    one = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with serving() as port:
        got = raw(port, one * 3 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert got.count(b"HTTP/1.1 200") == 4
        assert got.count(BODY) == 4
        assert raw(port, b"HEAD" + one[3:-2] + b"Connection: close\r\n\r\n").endswith(b"\r\n\r\n")


def test_response_has_security_headers() -> None:
    with serving() as port:
        for path in ("/", "/fail"):
            headers = get(port, path)[2]
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "script-src" not in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["X-Frame-Options"] == "deny"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert headers["Cache-Control"] == "no-store"
            assert "Server" not in headers
            assert "Access-Control-Allow-Origin" not in headers


def test_failure_is_logged_and_not_disclosed(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as port:
        status, body, _ = get(port, "/fail")
    assert status == 500
    assert b"purpose" not in body
    assert "on purpose" in caplog.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9743", 200),
        ("localhost", 200),
        ("a.localhost:1", 200),
        ("[::1]:9743", 200),
        ("192.0.2.7", 200),
        ("evil.example", 421),
        ("evil.example:9743", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_foreign_host_name_is_refused_on_loopback(host: str, status: int, tmp_path: Path) -> None:
    """A foreign page may point its name at 127.0.0.1 (DNS rebinding); users make that harmless."""
    with serving() as port:
        assert get(port, Host=host)[0] == status
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{alice: {HASH}}}")
    with serving(Access(tmp_path / "web.yml")) as port:
        assert get(port, Host=host, Authorization=basic("alice", "correct horse"))[0] == 200


def closed(client: socket.socket) -> bool:
    """Read what the server sent, and return whether it has closed the connection."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (b"", connection.REQUEST_SECONDS),
        (b"GET / HTTP/1.1\r\nHost:", connection.REQUEST_SECONDS),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", connection.IDLE_SECONDS),
    ],
    ids=["nothing is sent", "half a request", "no second request"],
)
def test_slow_request_is_closed(sent: bytes, seconds: float) -> None:
    loop = ManualLoop()
    with serving(loop=loop) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(sent)
        loop.advance(seconds - 0.1)
        assert not closed(client)
        loop.advance(0.2)
        assert closed(client)


def test_dripping_request_is_closed() -> None:
    """Ten bytes arrive each second."""
    loop = ManualLoop()
    with serving(loop=loop) as port, socket.create_connection(("127.0.0.1", port)) as drip:
        sent = 0
        for byte in b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 200:
            if closed(drip):
                break
            drip.sendall(bytes([byte]))
            loop.advance(0.1)
            sent += 1
    assert sent == pytest.approx(connection.REQUEST_SECONDS * 10, abs=2)


def test_client_that_does_not_read_is_closed() -> None:
    loop = ManualLoop()
    with serving(loop=loop) as port, socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", port))
        greedy.sendall(b"GET /?n=20000000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        loop.advance(connection.SEND_SECONDS + 0.1)
        greedy.settimeout(SAFETY_SECONDS)
        got = 0
        with contextlib.suppress(ConnectionError):
            while piece := greedy.recv(1 << 20):
                got += len(piece)
        assert 0 < got < 20_000_000
        assert get(port)[0] == 200


def test_longest_idle_connection_is_closed_for_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 5)
    with serving() as port, contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", port), timeout=SAFETY_SECONDS)
            )
            for _ in range(20)
        ]
        assert get(port)[0] == 200
        gone = 0
        for client in idle:
            client.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                gone += client.recv(1) == b""
        assert gone >= 15


def test_cpu_budget_limits_use() -> None:
    used, now = [0.0], [0.0]
    budget = Budget(lambda: used[0], lambda: now[0])
    assert budget.left() == 1.0
    used[0] += 1.5
    assert budget.left() == -0.5
    now[0] += 2.5
    assert budget.left() == pytest.approx(0.0)
    now[0] += 100
    assert budget.left() == 1.0, "no more than that is saved up"


@pytest.mark.parametrize("waiters", [1, 64])
def test_waiters_do_not_use_up_the_budget(waiters: int) -> None:
    """Simulate a machine on which each turn of the loop takes a millisecond of CPU time."""
    used, now = 0.0, 0.0

    class Turns(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            nonlocal used, now
            used, now = used + 0.001, now + 0.001 + max(0.0, timeout or 0.0)
            assert now < 1000, "they wait for ever"
            return super().select(0)

    async def all_waited() -> list[float]:
        async def wait() -> float:
            nonlocal used
            await budget.wait(0.1)
            used += 0.01
            return now

        return await asyncio.gather(*(wait() for _ in range(waiters)))

    loop = asyncio.SelectorEventLoop(Turns())
    loop.time = lambda: now  # type: ignore[method-assign]
    budget = Budget(lambda: used, lambda: now)
    used = SAVED_SECONDS
    with contextlib.closing(loop):
        ends = loop.run_until_complete(all_waited())
    assert ends == sorted(ends), "in the order of arrival"
    assert 0.5 <= ends[0] < 0.7, "0.1 s of CPU at a share of 0.2"
    assert ends[-1] < 0.7 + 1.2 * (waiters - 1) * 0.01 / SHARE


def test_only_users_with_password_are_answered(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text(f"basic_auth_users: {{alice: {HASH}, bob: {HASH.replace('$2b$', '$2y$')}}}")
    with serving(Access(path)) as port:
        status, _, headers = get(port)
        assert (status, headers["WWW-Authenticate"][:5]) == (401, "Basic")
        for user, password, expected in (
            ("alice", "correct horse", 200),
            ("alice", "correct horse", 200),
            ("bob", "correct horse", 200),
            ("alice", "wrong", 401),
            ("alice", "", 401),
            ("alice", "x" * 5000, 401),
            ("alice", "nul\0", 401),
            ("carol", "correct horse", 401),
            ("", "correct horse", 401),
        ):
            assert get(port, Authorization=basic(user, password))[0] == expected, (user, password)
        for header in (
            "Basic",
            "Basic !",
            "Bearer x",
            "Basic " + base64.b64encode(b"alice").decode(),
            "Basic /w==",
        ):
            assert get(port, Authorization=header)[0] == 401, header
        assert get(port, "/-/healthy")[0] == 401, "no path is without"


class Guesses:
    """Ten clients that guess passwords until stop()."""

    def __init__(self, port: int) -> None:
        self.port, self.seen, self._stop = port, list[int](), threading.Event()
        self._threads = [threading.Thread(target=self._guess, args=(n,)) for n in range(10)]
        for thread in self._threads:
            thread.start()

    def _guess(self, number: int) -> None:
        for again in itertools.count():
            if self._stop.is_set():
                return
            self.seen.append(get(self.port, Authorization=basic("alice", f"{number} {again}"))[0])

    def stop(self) -> None:
        self._stop.set()

    def ended(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)


@pytest.fixture
def alice(tmp_path: Path) -> Access:
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{alice: {HASH}}}")
    return Access(tmp_path / "web.yml")


def test_password_guesses_do_not_delay_known_users(
    alice: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one guess is hashed, a user who logged in before is admitted at once.

    Guesses that find the queue full get 429.
    """
    right = basic("alice", "correct horse")
    hashing, done = threading.Event(), threading.Event()

    def check(_password: bytes, _hashed: bytes) -> bool:
        hashing.set()
        return not done.wait(SAFETY_SECONDS)

    with serving(alice) as port:
        assert get(port, Authorization=right)[0] == 200
        monkeypatch.setattr(bcrypt, "checkpw", check)
        guesses = Guesses(port)
        try:
            assert hashing.wait(SAFETY_SECONDS)
            until(lambda: 429 in guesses.seen)
            for _ in range(20):
                assert get(port, Authorization=right)[0] == 200
            assert set(guesses.seen) == {429}, "the first guess is being hashed all the while"
        finally:
            guesses.stop()
            done.set()
        until(guesses.ended)
    assert set(guesses.seen) == {401, 429}


def test_password_guesses_are_hashed_within_cpu_share(
    alice: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten clients guess for ten seconds of the loop's time; a hash takes 0.1 s of it."""
    loop, hashed = ManualLoop(), [0]

    def check(_password: bytes, _hashed: bytes) -> bool:
        hashed[0] += 1
        loop.advance(0.1)
        return False

    def ended() -> bool:
        loop.advance(0.1)
        return guesses.ended()

    monkeypatch.setattr(bcrypt, "checkpw", check)
    began = loop.now
    with serving(alice, loop=loop) as port:
        guesses = Guesses(port)
        while loop.now < began + 10:
            loop.advance(0.1)
        guesses.stop()
        until(ended)
        took = loop.now - began
    assert 401 in guesses.seen
    assert hashed[0] <= 1 + (SAVED_SECONDS + took * SHARE) / 0.1


def test_unknown_user_costs_as_much_as_known_user() -> None:
    users = {"a": HASH, "b": HASH.replace("$04$", "$06$")}
    assert basic_auth.unmatchable(users).startswith("$2b$06$")
    assert not basic_auth.matches(b"", basic_auth.unmatchable(users))
    assert basic_auth.credentials("basic YTpiOmM=") == ("a", b"b:c")


class Certificates:
    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, trustme.CA()
        self.issue()
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        self.access = folder / "web.yml"

    def issue(self) -> None:
        made = self.ca.issue_cert("127.0.0.1", "localhost")
        made.private_key_pem.write_to_path(self.folder / "server.key")
        made.cert_chain_pems[0].write_to_path(self.folder / "server.pem")

    def rules(self, more: str = "") -> Access:
        self.access.write_text(
            f"tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n{more}"
        )
        return Access(self.access)

    def client(self, *names: str, ca: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if names:
            (ca or self.ca).issue_cert(*names).configure_cert(context)
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


CLIENTS = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"


def refused(port: int, context: ssl.SSLContext) -> bool:
    try:
        get(port, context=context)
    except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
        return True
    return False


def test_server_speaks_tls(certificates: Certificates) -> None:
    with serving(certificates.rules("  min_version: TLS13\n")) as port:
        assert get(port, context=certificates.client())[0] == 200
        old = certificates.client()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert refused(port, old)
        assert raw(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[:4] != b"HTTP", "no plain HTTP"
        assert len(get(port, "/?n=3000000", certificates.client())[1]) == 3_000_000


def test_client_certificate_is_required(certificates: Certificates) -> None:
    with serving(certificates.rules(CLIENTS)) as port:
        assert get(port, context=certificates.client("prometheus.test"))[0] == 200
        assert refused(port, certificates.client())
        assert refused(port, certificates.client("prometheus.test", ca=trustme.CA()))
    with serving(
        certificates.rules(CLIENTS + "  client_allowed_sans: [prometheus.test]\n")
    ) as port:
        assert get(port, context=certificates.client("prometheus.test"))[0] == 200
        assert refused(port, certificates.client("other.test"))


def test_client_without_handshake_does_not_block_others(certificates: Certificates) -> None:
    """The time of the loop stands still, so no timeout closes a connection."""
    loop = ManualLoop()
    with serving(certificates.rules(), loop=loop) as port, contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert get(port, context=certificates.client())[0] == 200


def test_renewed_certificate_and_removed_user_take_effect(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.web.access.LOOK_SECONDS", 0.05)
    header = basic("alice", "correct horse")
    with (
        serving(certificates.rules(f"basic_auth_users:\n  alice: {HASH}\n")) as port,
        contextlib.ExitStack() as stack,
    ):

        def serial() -> object:
            with (
                socket.create_connection(("127.0.0.1", port)) as plain,
                certificates.client().wrap_socket(plain, server_hostname="localhost") as client,
            ):
                return (client.getpeercert() or {})["serialNumber"]

        kept = stack.enter_context(
            contextlib.closing(
                http.client.HTTPSConnection("127.0.0.1", port, context=certificates.client())
            )
        )

        def asked() -> int:
            kept.request("GET", "/", headers={"Authorization": header})
            answer = kept.getresponse()
            answer.read()
            return answer.status

        assert asked() == 200
        before = serial()
        certificates.issue()
        until(lambda: serial() != before)
        certificates.rules(f"basic_auth_users:\n  bob: {HASH}\n")
        until(lambda: asked() == 401, "also on a connection that was there before")


def test_configured_headers_are_sent(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text(
        "http_server_config: {headers: {X-Frame-Options: sameorigin, "
        "Strict-Transport-Security: max-age=60, X-Content-Type-Options: ''}}"
    )
    with serving(Access(path)) as port:
        headers = get(port)[2]
    assert headers["X-Frame-Options"] == "sameorigin"
    assert headers["Strict-Transport-Security"] == "max-age=60"
    assert "X-Content-Type-Options" not in headers


def test_server_stops_with_open_connections(caplog: pytest.LogCaptureFixture) -> None:
    """The time of the loop stands still, so the server waits for nothing."""
    caplog.set_level(logging.WARNING)
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack, serving(loop=ManualLoop()) as port:
        for _ in range(10):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert get(port)[0] == 200
    assert set(threading.enumerate()) <= before
    assert not caplog.text


def test_compressed_response_is_labelled_and_correct() -> None:
    packed = Response(200, BODY * 10).packed()
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == BODY * 10
    assert Response(200, b"short").packed() == Response(200, b"short")
