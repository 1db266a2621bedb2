"""The client against the real server: answers, TLS, passwords, restarts, and servers that fail."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trustme

from tests.support import busy
from tests.support.served import Daemon
from tests.unit.web.test_server import basic
from tracer.client.address import Address, from_url
from tracer.client.connection import Client
from tracer.client.credentials import Credentials
from tracer.errors import RmapdError, Unreachable
from tracer.invariants.verdict import Verdict
from tracer.web import Request, Response, Server

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$abcdefghijklmnopqrstuu").decode()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as made:
        yield made


class Site:
    """Certificates of a host, and its web configuration."""

    def __init__(
        self, folder: Path, names: tuple[str, ...] = ("127.0.0.1",), more: str = ""
    ) -> None:
        self.folder, self.ca, self.names = folder, trustme.CA(), names
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        client = self.ca.issue_cert("client")
        client.cert_chain_pems[0].write_to_path(folder / "client.pem")
        client.private_key_pem.write_to_path(folder / "client.key")
        self.renew()
        self.rules = folder / "web.yml"
        self.rules.write_text(
            f"tls_server_config: {{cert_file: server.pem, key_file: server.key{more}}}\n"
            f"basic_auth_users: {{alice: {HASH}}}\n"
        )

    def renew(self) -> None:
        server = self.ca.issue_cert(*self.names)
        server.cert_chain_pems[0].write_to_path(self.folder / "server.pem")
        server.private_key_pem.write_to_path(self.folder / "server.key")


LOGIN = Credentials(authorization=basic("alice", "correct horse"))


def with_ca(site: Site, **changes: object) -> Credentials:
    values: dict[str, Any] = {"ca_file": site.folder / "ca.pem", **changes}
    return replace(LOGIN, **values)


def client(url: str, credentials: Credentials | None = None, timeout: float = 30.0) -> Client:
    return Client(from_url(url), credentials, timeout)


def test_every_path_is_read_and_typed(daemon: Daemon) -> None:
    with client(daemon.url) as reader:
        seen = reader.status()
        assert seen.status.kernel == daemon.snapshot.kernel
        assert seen.status.checks("violated") == daemon.snapshot.total(Verdict.VIOLATED) == 3
        assert seen.exact["run"] == seen.status.run == daemon.snapshot.run
        assert [one.verdict for one in seen.status.worst_first] == ["violated", "suspect"]
        functions, locks, entries = reader.functions(), reader.locks(), reader.entries()
        assert (len(functions) > 10, len(locks) > 3, len(entries)) == (True, True, 12)
        assert {"mmap_lock read", "mmap_lock write", "i_rwsem"} <= {one.name for one in locks}
        rates = reader.rates()
        assert rates.seconds == [daemon.snapshot.running_seconds]
        assert reader.rates(rates.seconds[-1]).seconds == []
        id = next(iter(daemon.snapshot.violations))
        whole = reader.violation(id)
        assert whole
        assert len(whole["trail"]) == 5
        assert reader.violation("M1-0000000000") is None
        assert reader.violation("../status") is None
        assert {one["function"] for one in reader.protocols("vma_expand")} == {"vma_expand"}
        assert reader.hooks().keys() == {hook.hook.name for hook in daemon.snapshot.hooks}


def test_names_are_printable_and_exact_beside(daemon: Daemon) -> None:
    name = "\x1b[31mx\u202e"
    first = busy.violations()[0]
    hostile = replace(first, first=replace(first.first, summary=name, task={"comm": name}))
    daemon.put(violations={"L1-hostile": hostile})
    with client(daemon.url) as reader:
        seen = reader.status()
    assert seen.exact["findings"][0]["summary"] == name
    assert seen.status.findings[0].summary == r"\x1b[31mx\u202e"
    assert seen.status.findings[0].task.comm == r"\x1b[31mx\u202e"
    daemon.put(violations=busy.snapshot().violations)


@pytest.mark.parametrize(("age", "least", "most"), [(0.0, 0.0, 10.0), (90.0, 89.0, 100.0)])
def test_age_is_measured_by_the_clock_of_the_daemon(age: float, least: float, most: float) -> None:
    with Daemon() as daemon, client(daemon.url) as reader:
        daemon.put(age=age)
        assert least <= reader.status().age_seconds <= most


def test_one_connection_serves_many_requests(daemon: Daemon) -> None:
    with client(daemon.url) as reader:
        reader.status()
        pool = reader._pool  # noqa: SLF001 -- the number of connections is not visible outside
        for _ in range(10):
            reader.locks()
        assert pool is reader._pool  # noqa: SLF001
        assert pool
        assert pool.num_connections == 1
        assert pool.num_requests == 11


def test_restart_of_the_daemon_needs_no_new_client() -> None:
    with Daemon() as daemon, client(daemon.url) as reader:
        first = reader.status().status.run
        daemon.stop()
        with pytest.raises(Unreachable, match="nothing listens there"):
            reader.status()
        daemon.start()
        assert reader.status().status.run != first
        daemon.stop()
        daemon.start()
        assert reader.status().status.run, "the kept connection was closed, and nothing is wrong"


def test_daemon_that_is_starting_is_unreachable() -> None:
    with Daemon() as daemon, client(daemon.url) as reader:
        daemon.stop()
        daemon.start(ready=False)
        with pytest.raises(Unreachable, match="the gate is not open"):
            reader.status()


def test_tls_password_and_client_certificate_are_used(tmp_path: Path) -> None:
    more = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"
    site = Site(tmp_path, more=more)
    own = {"cert_file": tmp_path / "client.pem", "key_file": tmp_path / "client.key"}
    with Daemon(access=site.rules) as daemon:
        with client(daemon.url, with_ca(site, **own)) as reader:
            assert reader.status().status.findings
        with (
            client(daemon.url, with_ca(site)) as reader,
            pytest.raises(RmapdError, match="--cert-file FILE --key-file FILE"),
        ):
            reader.status()


@pytest.mark.parametrize(
    ("changes", "why", "hint"),
    [
        ({"authorization": ""}, "it wants a user and a password", "--password-file"),
        (
            {"authorization": basic("alice", "wrong")},
            "it refuses this user or password",
            "--password-file",
        ),
        ({"ca_file": None}, "its certificate is not trusted", "--ca-file"),
        ({"server_name": "web2"}, "its certificate has another name", "--server-name"),
    ],
)
def test_refusal_is_final_and_has_a_hint(
    tmp_path: Path, changes: dict[str, object], why: str, hint: str
) -> None:
    site = Site(tmp_path)
    with (
        Daemon(access=site.rules) as daemon,
        client(daemon.url, with_ca(site, **changes)) as reader,
        pytest.raises(RmapdError) as refused,
    ):
        reader.status()
    assert refused.value.exit_code == 2
    assert why in str(refused.value)
    assert hint in str(refused.value)


def test_server_name_stands_for_the_host(tmp_path: Path) -> None:
    site = Site(tmp_path, names=("web1.example",))
    with Daemon(access=site.rules) as daemon:
        with client(daemon.url, with_ca(site, server_name="web1.example")) as reader:
            assert reader.status()
        with (
            client(daemon.url, with_ca(site)) as reader,
            pytest.raises(RmapdError, match="another name"),
        ):
            reader.status()


def test_daemon_of_this_host_is_known_by_its_certificate(tmp_path: Path) -> None:
    """Neither a CA nor a name is needed; another certificate of the same CA is refused."""
    site = Site(tmp_path, names=("web1.example",))
    with Daemon(access=site.rules) as daemon:
        pinned = Address("https", "127.0.0.1", daemon.port, certificate=tmp_path / "server.pem")
        with Client(pinned, LOGIN, 30.0) as reader:
            assert reader.status()
            site.renew()
            reader.close()
            with pytest.raises(RmapdError, match="does not serve the certificate") as refused:
                reader.status()
            assert refused.value.exit_code == 2
            daemon.stop()
            daemon.start()
            assert reader.status(), "the file is read again"


@contextlib.contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one connection after the other with a function, on a port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as one, contextlib.suppress(OSError):
                        handle(one)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def reply(body: bytes, head: bytes = b"") -> Callable[[socket.socket], None]:
    def handle(one: socket.socket) -> None:
        one.recv(65536)
        length = str(len(body)).encode()
        one.sendall(
            b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: " + length + b"\r\n\r\n" + body
        )

    return handle


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "Expecting value"),
        (b"{}", "missing required field"),
        (b"[1]", "Expected `object`"),
        (b'{"a":' * 100, "Expecting value"),
        (b"[" * 100 + b"]" * 100, "nested more than"),
    ],
)
def test_answer_that_rmapd_did_not_write_is_refused(body: bytes, why: str) -> None:
    with listening(reply(body)) as url, client(url) as reader, pytest.raises(Unreachable) as found:
        reader.status()
    assert "is no rmapd of this version" in str(found.value)
    assert why in str(found.value)


def test_answer_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracer.client.connection._MOST_BYTES", 1 << 20)
    with (
        listening(reply(b"x" * (2 << 20))) as url,
        client(url) as reader,
        pytest.raises(Unreachable, match="the answer has more than 1 MiB"),
    ):
        reader.status()


def test_redirect_is_not_followed() -> None:
    def redirect(one: socket.socket) -> None:
        one.recv(65536)
        one.sendall(
            b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n"
        )

    with (
        listening(redirect) as url,
        client(url, LOGIN) as reader,
        pytest.raises(Unreachable, match="status 302"),
    ):
        reader.status()


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"], ids=["nothing", "a part"]
)
def test_silent_daemon_ends_the_request_in_time(sent: bytes) -> None:
    ended = threading.Event()

    def silent(one: socket.socket) -> None:
        one.recv(65536)
        one.sendall(sent)
        ended.wait(60)

    with listening(silent) as url:
        try:
            with (
                client(url, timeout=0.2) as reader,
                pytest.raises(Unreachable, match=r"no answer within 0\.2 s") as found,
            ):
                reader.status()
            assert "--timeout" in str(found.value)
        finally:
            ended.set()


def test_busy_login_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracer.client.connection._BUSY_SECONDS", 0.01)
    asked: list[str] = []

    def app(ask: Request) -> Response:
        asked.append(ask.path)
        if len(asked) < 3:
            return Response.plain(429, "too many logins at the same time", Retry_After="2")
        return Response(200, b"[]", "application/json")

    with (
        Server(("127.0.0.1", 0), app) as server,
        client(f"http://127.0.0.1:{server.port}") as reader,
    ):
        assert reader.locks() == []
    assert asked == ["/api/v1/locks"] * 3


def test_daemon_that_stays_busy_is_unreachable() -> None:
    with (
        Server(("127.0.0.1", 0), lambda _: Response.plain(429, "too many")) as server,
        client(f"http://127.0.0.1:{server.port}", timeout=1.0) as reader,
        pytest.raises(Unreachable, match="too many clients log in"),
    ):
        reader.locks()


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [(403, 2, "no words"), (404, 5, "no such path"), (500, 5, "status 500"), (421, 2, "no words")],
)
def test_other_statuses_are_errors(status: int, code: int, why: str) -> None:
    with (
        Server(
            ("127.0.0.1", 0), lambda _: Response.plain(status, "no\x1b words"[:2] + " words")
        ) as server,
        client(f"http://127.0.0.1:{server.port}") as reader,
        pytest.raises(RmapdError, match=why) as found,
    ):
        reader.status()
    assert found.value.exit_code == code


def test_plain_request_to_a_tls_port_is_explained(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with Daemon(access=site.rules) as daemon:
        plain = daemon.url.replace("https", "http")
        with client(plain) as reader, pytest.raises(Unreachable, match="https, if it speaks TLS"):
            reader.status()


def test_tls_request_to_a_plain_port_is_explained(daemon: Daemon) -> None:
    with (
        client(daemon.url.replace("http", "https")) as reader,
        pytest.raises(RmapdError, match="it does not speak TLS") as found,
    ):
        reader.status()
    assert found.value.exit_code == 2


def test_unknown_name_is_unreachable() -> None:
    with client("http://nothing.invalid") as reader, pytest.raises(Unreachable, match="not known"):
        reader.status()
