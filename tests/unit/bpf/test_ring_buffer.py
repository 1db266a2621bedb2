"""The ring buffer's consumer, over a memory file that has the pages of kernel/bpf/ringbuf.c."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from tracer.bpf.ring_buffer import RingBuffer

SIZE = 2 * mmap.PAGESIZE
BUSY, DISCARD = 1 << 31, 1 << 30


class Producer:
    """The kernel's side: positions in two pages, the data twice in a row."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.truncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.position = 0

    def submit(self, event: bytes, flags: int = 0) -> int:
        """Append an event with its header; return where its header is."""
        at = self.position
        record = struct.pack("<II", len(event) | flags, 0) + event
        for n, byte in enumerate(record):
            offset = (at + n) % SIZE
            for copy in (offset, offset + SIZE):
                os.pwrite(self.fd, bytes([byte]), 2 * mmap.PAGESIZE + copy)
        self.position += (len(record) + 7) // 8 * 8
        os.pwrite(self.fd, struct.pack("<Q", self.position), mmap.PAGESIZE)
        return at

    def commit(self, at: int, length: int) -> None:
        """Clear the busy bit of an event."""
        for copy in (at % SIZE, at % SIZE + SIZE):
            os.pwrite(self.fd, struct.pack("<I", length), 2 * mmap.PAGESIZE + copy)


@pytest.fixture
def producer() -> Iterator[Producer]:
    made = Producer()
    yield made
    os.close(made.fd)


def test_committed_events_are_read_once_in_order(producer: Producer) -> None:
    ring = RingBuffer(producer.fd, SIZE)
    producer.submit(b"first")
    producer.submit(b"the second one")
    assert list(ring.read()) == [b"first", b"the second one"]
    assert list(ring.read()) == []
    assert ring.position == producer.position
    ring.close()


def test_reading_stops_at_an_event_that_is_not_submitted_yet(producer: Producer) -> None:
    ring = RingBuffer(producer.fd, SIZE)
    producer.submit(b"first")
    reserved = producer.submit(b"second", BUSY)
    producer.submit(b"third")
    assert list(ring.read()) == [b"first"]
    producer.commit(reserved, len(b"second"))
    assert list(ring.read()) == [b"second", b"third"]
    ring.close()


def test_discarded_events_are_skipped_and_not_noted(producer: Producer) -> None:
    noted = list[tuple[int, bytes]]()
    ring = RingBuffer(producer.fd, SIZE, lambda at, event: noted.append((at, event)))
    producer.submit(b"discarded", DISCARD)
    at = producer.submit(b"kept")
    assert list(ring.read()) == [b"kept"]
    assert noted == [(at, b"kept")]
    ring.close()


def test_event_is_noted_before_it_is_taken_out(producer: Producer) -> None:
    positions = list[int]()
    ring = RingBuffer(producer.fd, SIZE, lambda *_: positions.append(ring.position))
    first, second = producer.submit(b"first"), producer.submit(b"second")
    assert list(ring.read()) == [b"first", b"second"]
    assert positions == [first, second]
    ring.close()


def test_event_across_the_end_of_the_data_is_read_whole(producer: Producer) -> None:
    ring = RingBuffer(producer.fd, SIZE)
    producer.submit(bytes(SIZE - 24))
    assert len(list(ring.read())) == 1
    event = bytes(range(100))
    producer.submit(event)
    assert list(ring.read()) == [event]
    ring.close()
