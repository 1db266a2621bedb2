"""The open port under attack by clients, on loopback only and for seconds.

The checker is on time, scrapes succeed, and nothing leaks.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live.conftest import WORKLOAD, daemon, reachable_folder
from tests.support.daemons import fetch

SECONDS = 8.0
MARGIN_SECONDS = 1.0
"""An attack may delay the checker, which works once a second, by one tick."""


@dataclass(frozen=True)
class Size:
    """Resources of a process that grow with a leak."""

    files: int
    threads: int
    rss_kib: int

    @classmethod
    def of(cls, pid: int) -> Size:
        status = Path(f"/proc/{pid}/status").read_text()
        numbers = {
            name: int(re.findall(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[0])
            for name in ("Threads", "VmRSS")
        }
        return cls(len(os.listdir(f"/proc/{pid}/fd")), numbers["Threads"], numbers["VmRSS"])


class WatchdogListener:
    """Measures how late the checker is.

    The checker sends WATCHDOG=1 once a second from its loop, as to systemd.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.name)
        os.chmod(self.name, 0o666)  # as systemd's: the daemon is a user of its own
        self._socket.settimeout(0.1)
        self._received: list[float] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> WatchdogListener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._ends.is_set():
            with contextlib.suppress(TimeoutError):
                if b"WATCHDOG=1" in self._socket.recv(4096):
                    self._received.append(time.monotonic())

    def longest(self, since: float) -> float:
        """Return the longest time in seconds between two messages since then, until now."""
        times = [when for when in self._received if when >= since] + [time.monotonic()]
        return max(b - a for a, b in zip([since, *times], times, strict=False))

    def wait_until_on_time(self, seconds: float = 3.0, patience: float = 90.0) -> float:
        """Wait for a while without an attack in which the checker is on time on a busy machine.

        Return the longest silence in it, in seconds.
        """
        ends = time.monotonic() + patience
        while time.monotonic() < ends:
            began = time.monotonic()
            time.sleep(seconds)
            if (found := self.longest(began)) < 1.5:
                return found
        return pytest.fail(f"the checker is not on time without any attack, for {patience:g} s")


Attack = Callable[[int, float], None]


def talk(port: int, sent: bytes, seconds: float = 2.0) -> bytes:
    """Send; return what is received until the other side closes or the time is over."""
    got = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=seconds) as client,
    ):
        client.sendall(sent)
        while piece := client.recv(65536):
            got += piece
    return got


def malformed(port: int, ends: float) -> None:
    chance = random.Random(7)
    whole = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    while time.monotonic() < ends:
        broken = bytearray(whole)
        for _ in range(chance.randrange(1, 12)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        talk(port, bytes(broken), 0.3)
        talk(port, chance.randbytes(chance.randrange(2000)) + b"\r\n\r\n", 0.3)


def idle(port: int, ends: float) -> None:
    """Open a thousand connections that send nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
        time.sleep(max(0.0, ends - time.monotonic()))


def headers(port: int, ends: float) -> None:
    """Send ten MiB of headers, in one line and in many."""
    start = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    while time.monotonic() < ends:
        talk(port, start + b"X: " + b"y" * (10 << 20) + b"\r\n\r\n")
        talk(port, start + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * (10 * 32768) + b"\r\n")


def traversal(port: int, ends: float) -> None:
    up = [
        "../../../..",
        "static/../../..",
        "static/%2e%2e/%2e%2e",
        "..%2f..%2f..",
        "static/..\\..\\..",
        "api/v1/../../..",
        "violations/../..",
    ]
    paths = [f"/{one}/etc/passwd" for one in ("", *up, "protocols?q=../..")]
    while time.monotonic() < ends:
        for path in paths:
            got = talk(
                port,
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode(),
            )
            assert b"root:" not in got


def slowloris(port: int, ends: float) -> None:
    """Send three hundred requests that never end, a byte at a time."""
    clients: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        while time.monotonic() < ends:
            while len(clients) < 300 and time.monotonic() < ends:
                with contextlib.suppress(OSError):
                    made = stack.enter_context(
                        socket.create_connection(("127.0.0.1", port), timeout=1)
                    )
                    made.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
                    clients.append(made)
            for client in list(clients):
                try:
                    client.sendall(b"y")
                except OSError:
                    clients.remove(client)
                    client.close()
            time.sleep(0.2)


def greedy(port: int, ends: float) -> None:
    """Request the most expensive pages by forty clients without pause."""
    paths = ["/", "/metrics", "/api/v1/report", "/protocols?q={n}", "/hooks"]

    def one(number: int) -> None:
        n = number * 100_000
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                fetch(f"http://127.0.0.1:{port}{paths[n % len(paths)].format(n=n)}")
            n += 1

    threads = [threading.Thread(target=one, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def unread(port: int, ends: float) -> None:
    """Request much by a hundred clients that read nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            with contextlib.suppress(OSError):
                client.connect(("127.0.0.1", port))
                client.sendall(b"GET /api/v1/report HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20)
        time.sleep(max(0.0, ends - time.monotonic()))


ATTACKS: tuple[Attack, ...] = (malformed, idle, headers, traversal, slowloris, greedy, unread)


def start_attacker(attack: Attack, port: int) -> int:
    """Start an attack in a process of its own, so that it does not delay the measurement."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            attack(port, time.monotonic() + SECONDS)
            code = 0
        finally:
            os._exit(code)
    return child


@pytest.fixture(scope="module")
def run() -> Iterator[tuple[int, int, WatchdogListener]]:
    """Start one daemon for all attacks, with entries to check: its pid, port and listener."""
    with (
        pytest.MonkeyPatch.context() as patch,
        reachable_folder() as folder,
        WatchdogListener(folder) as listener,
    ):
        patch.setenv("NOTIFY_SOCKET", listener.name)
        # Sweeping all page tables delays the checker without any attack.
        patch.setenv("RMAPD_SCAN_SECONDS", "0")
        with daemon() as (process, url):
            subprocess.run([*WORKLOAD, "5000"], check=True, stdout=subprocess.DEVNULL)
            for path in ("/", "/metrics", "/protocols", "/hooks", "/api/v1/report"):
                assert fetch(url + path)[0] == 200
            yield process.pid, int(url.rsplit(":", 1)[1]), listener
            assert process.poll() is None


def scraping(port: int, child: int) -> tuple[list[float], list[str]]:
    """Scrape until the attacker ends; return the seconds of each scrape, and the failures."""
    took: list[float] = []
    failed: list[str] = []
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        began = time.monotonic()
        try:
            status, text = fetch(f"http://127.0.0.1:{port}/metrics")
            if status != 200 or "rmapd_gate_open 1.0" not in text:
                failed.append(f"status {status}")
        except (OSError, http.client.HTTPException) as error:
            failed.append(repr(error))
        took.append(time.monotonic() - began)
        time.sleep(0.2)
    return took, failed


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_checker_is_on_time_under_attack(
    run: tuple[int, int, WatchdogListener], attack: Attack
) -> None:
    pid, port, listener = run
    alone = listener.wait_until_on_time()
    before, began = Size.of(pid), time.monotonic()
    took, failed = scraping(port, start_attacker(attack, port))
    longest_silence = listener.longest(began)
    ends = time.monotonic() + 30
    while (after := Size.of(pid)).files > before.files and time.monotonic() < ends:
        time.sleep(0.2)
    print(
        f"\n{attack.__name__}: checker silent for {longest_silence:.2f} s at most"
        f" ({alone:.2f} s before); {len(took)} scrapes, the slowest {max(took):.2f} s,"
        f" failed {failed}; {before} -> {after}"
    )
    assert longest_silence < alone + MARGIN_SECONDS
    assert len(took) >= 3
    assert not failed
    assert after.files <= before.files
    assert after.threads <= before.threads
    assert after.rss_kib < before.rss_kib + 16 * 1024


def test_second_round_of_attacks_needs_no_more_memory(
    run: tuple[int, int, WatchdogListener],
) -> None:
    """The first round fills caches; after it another round allocates nothing more."""
    pid, port, _ = run
    before = Size.of(pid)
    for child in [
        start_attacker(attack, port) for attack in (malformed, idle, traversal, slowloris, greedy)
    ]:
        os.waitpid(child, 0)
    time.sleep(6)
    after = Size.of(pid)
    print(f"{before} -> {after}")
    assert after.files <= before.files
    assert after.threads <= before.threads
    assert after.rss_kib < before.rss_kib + 4 * 1024
