"""The consumer's side of a BPF ring buffer (kernel/bpf/ringbuf.c)."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator

_BUSY, _DISCARD, _HEADER_BYTES = 1 << 31, 1 << 30, 8
"""BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT, BPF_RINGBUF_HDR_SZ of include/uapi/linux/bpf.h."""


class RingBuffer:
    """Reads the events of a map of type BPF_MAP_TYPE_RINGBUF.

    The kernel maps a page with the consumer's position, which is ours to write, a page with the
    producer's position, and the data twice in a row, so that no event is split at the end.
    """

    def __init__(
        self, fd: int, size: int, before_consumed: Callable[[int, bytes], None] | None = None
    ) -> None:
        """Map the ring.

        fd: of the map, which stays the caller's. size: of its data, in bytes. before_consumed: is
        called with the position and the bytes of each event before the event is taken out of the
        ring, so that another process can read it again should this one die.
        """
        self.fd, self._size, self._before_consumed = fd, size, before_consumed
        self._consumer = mmap.mmap(
            fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        data = mmap.PAGESIZE + 2 * size
        self._producer = mmap.mmap(fd, data, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE)

    @property
    def position(self) -> int:
        """The position of the next event, in bytes since the ring was made."""
        return int(struct.unpack_from("<Q", self._consumer)[0])

    def read(self) -> Iterator[bytes]:
        """Yield each event that is committed now, without its header, and take it out of the ring.

        Stops at an event that a program has reserved and not submitted yet. Discarded events are
        skipped.
        """
        while True:
            position = self.position
            (end,) = struct.unpack_from("<Q", self._producer)
            if position >= end:
                return
            offset = mmap.PAGESIZE + position % self._size
            (header,) = struct.unpack_from("<I", self._producer, offset)
            if header & _BUSY:
                return
            length = header & ~(_BUSY | _DISCARD)
            event = self._producer[offset + _HEADER_BYTES : offset + _HEADER_BYTES + length]
            if self._before_consumed and not header & _DISCARD:
                self._before_consumed(position, event)
            consumed = position + (length + _HEADER_BYTES + 7) // 8 * 8
            struct.pack_into("<Q", self._consumer, 0, consumed)
            if not header & _DISCARD:
                yield event

    def close(self) -> None:
        """Unmap the ring; the map's descriptor stays open."""
        self._consumer.close()
        self._producer.close()
