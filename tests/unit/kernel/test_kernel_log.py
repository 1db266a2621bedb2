"""The reader of /dev/kmsg, over a socket that keeps records apart as the kernel does."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.kernel.kernel_log import (
    MOST_A_READ,
    MOST_A_SECOND,
    KernelLog,
    LogRecord,
    parse_record,
)


def raw(number: int, text: bytes, priority: int = 4, more: bytes = b"-") -> bytes:
    return b"%d,%d,%d,%s;%s\n" % (priority, number, 1000 * number, more, text)


class Kmsg:
    """A log of our own. overwritten: so many of the next reads fail with EPIPE."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.overwritten = 0, 0
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self.log = KernelLog(ours.detach(), lambda: self.now)
        read = os.read

        def reading(descriptor: int, size: int) -> bytes:
            if self.overwritten:
                self.overwritten -= 1
                raise BrokenPipeError
            return read(descriptor, size)

        monkeypatch.setattr("tracer.kernel.kernel_log.os.read", reading)

    def put(self, *records: bytes) -> None:
        for record in records:
            self.theirs.send(record)

    def close(self) -> None:
        self.log.close()
        self.theirs.close()


@pytest.fixture
def kmsg(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kmsg]:
    made = Kmsg(monkeypatch)
    yield made
    made.close()


def test_record_of_the_kernel_has_number_time_and_text() -> None:
    record = parse_record(b"1,5140,81937423,-;BUG: Bad rss-counter state mm:0000\n")
    assert record == LogRecord(5140, 81937423000, 0, ("BUG: Bad rss-counter state mm:0000",))
    assert record.of_kernel


def test_record_of_user_space_has_another_facility() -> None:
    """/dev/kmsg gives what is written to it LOG_USER, 1, or the facility that the writer asks for.

    The line is what this machine (6.18.44) returned after echo '<4>…' > /dev/kmsg.
    """
    record = parse_record(b"12,381,13794080220,-;helper k1: test write\n")
    assert record
    assert (record.facility, record.of_kernel) == (1, False)


def test_caller_fragments_and_properties_are_understood() -> None:
    """CONFIG_PRINTK_CALLER adds a field; a device adds lines that begin with a space."""
    record = parse_record(b"6,7,8,c,caller=T123;tty\\x09S0 \\xe2\\x80\\xa6\n SUBSYSTEM=tty\n")
    assert record == LogRecord(7, 8000, 0, ("tty\tS0 …",), "T123")


def test_record_of_several_lines_is_split() -> None:
    record = parse_record(raw(1, b"first\\x0asecond"))
    assert record
    assert record.lines == ("first", "second")


@pytest.mark.parametrize("text", [b"", b";", b"4,5;text", b"a,b,c,-;text", b"4,5,6 text\n"])
def test_what_is_no_record_is_none(text: bytes) -> None:
    assert parse_record(text) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(0, 1023))
def test_every_text_that_the_kernel_escapes_comes_back(text: str, priority: int) -> None:
    """msg_add_ext_text(), kernel/printk/printk.c: below 32, from 127 on, and the backslash."""
    escaped = b"".join(
        b"\\x%02x" % one if one < 32 or one >= 127 or one == 0x5C else bytes([one])
        for one in text.encode()
    )
    record = parse_record(raw(3, escaped, priority))
    assert record
    assert record.lines == tuple(text.split("\n"))
    assert record.facility == priority >> 3


@given(st.binary(max_size=80))
def test_no_bytes_make_the_parser_fail(text: bytes) -> None:
    parse_record(text)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.integers(1, 30)), max_size=12),
)
def test_records_that_are_read_and_lost_add_up(steps: list[tuple[int, bool, int]]) -> None:
    """Numbers of records ascend by one, except where the kernel has overwritten some."""
    with pytest.MonkeyPatch.context() as patch:
        kmsg = Kmsg(patch)
        number, read, gone = 1, 0, 0
        kmsg.put(raw(0, b"first"))
        read += len(kmsg.log.read())
        for count, overwrites, gap in steps:
            if overwrites:
                number += gap
                gone += gap
                kmsg.overwritten = 1
            kmsg.put(*(raw(number + n, b"text") for n in range(count)))
            number += count
            kmsg.now += 10**9
            read += len(kmsg.log.read())
        assert (read, kmsg.log.lost) == (number - gone, gone)
        kmsg.close()


def test_flood_is_read_at_a_bounded_rate(kmsg: Kmsg) -> None:
    sent = 0

    def fill() -> None:
        nonlocal sent
        while sent < 10_000:
            try:
                kmsg.theirs.send(raw(sent, b"flood"), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            sent += 1

    read = 0
    while True:
        fill()
        got = len(kmsg.log.read())
        assert got <= MOST_A_READ
        read += got
        if not got:
            break
    assert read == MOST_A_SECOND
    assert kmsg.log.wait_ns > 0
    kmsg.now += kmsg.log.wait_ns
    fill()
    assert len(kmsg.log.read()) == MOST_A_READ


def test_descriptor_is_readable_once_until_it_is_armed(kmsg: Kmsg) -> None:
    poll = select.poll()
    poll.register(kmsg.log.fd, select.POLLIN)
    assert poll.poll(0) == []
    kmsg.put(raw(1, b"one"))
    assert poll.poll(0)
    assert kmsg.log.take_wake_up()
    assert poll.poll(0) == [], "the record is still there, and wakes nobody"
    kmsg.log.arm()
    assert poll.poll(0)
    assert [record.number for record in kmsg.log.read()] == [1]


def test_first_record_after_an_overrun_counts_one_lost(kmsg: Kmsg) -> None:
    """Nothing was read before, so there is no number to count from."""
    kmsg.overwritten = 1
    kmsg.put(raw(900, b"one"))
    assert len(kmsg.log.read()) == 1
    assert kmsg.log.lost == 1


def test_error_of_the_kernel_is_raised(kmsg: Kmsg, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _size: int) -> bytes:
        raise PermissionError

    monkeypatch.setattr("tracer.kernel.kernel_log.os.read", refuse)
    with pytest.raises(PermissionError):
        kmsg.log.read()
