"""A snapshot as bytes, for another process of the same rmapd on this machine.

It is msgpack of the snapshot's fields by name. Protocols are in the kernel's own form
(protocol/codec.py). The invariants are not in it: the reader has the same.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec

from tracer.errors import RmapdError
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Ruling
from tracer.protocol.codec import Encoding
from tracer.protocol.model import Protocol
from tracer.results.protocols import LockNesting, ProtocolVerdict
from tracer.results.snapshot import Snapshot

_APART = ("invariants", "protocols", "lock_graph")
_HINTS = typing.get_type_hints(Snapshot)
_Fields: Any = msgspec.defstruct(
    "_Fields",
    [(one.name, _HINTS[one.name]) for one in fields(Snapshot) if one.name not in _APART],
    forbid_unknown_fields=True,
)


@dataclass(frozen=True)
class _Protocol:
    """A ProtocolVerdict."""

    key: bytes
    windows: int
    rulings: dict[str, Ruling]


@dataclass(frozen=True)
class _Edge:
    """A LockNesting; key: its first protocol."""

    held: str
    taken: str
    modes: dict[str, int]
    functions: dict[str, int]
    key: bytes
    stack: tuple[str, ...]
    cycle: bool


class _Whole(msgspec.Struct):
    fields: _Fields
    protocols: list[_Protocol]
    lock_graph: list[_Edge]


class SnapshotCodec:
    """Writes and reads snapshots. encoding: of protocols, by the layouts of the probes."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def encode(self, s: Snapshot) -> bytes:
        """Return the snapshot as bytes."""
        code = self._encoding.encode
        return msgspec.msgpack.encode(
            {
                "fields": {
                    one.name: getattr(s, one.name)
                    for one in fields(Snapshot)
                    if one.name not in _APART
                },
                "protocols": [
                    _Protocol(code(one.protocol), one.windows, dict(one.rulings))
                    for one in s.protocols
                ],
                "lock_graph": [
                    _Edge(
                        one.held,
                        one.taken,
                        dict(one.modes),
                        dict(one.functions),
                        code(one.first),
                        one.stack,
                        one.cycle,
                    )
                    for one in s.lock_graph
                ],
            },
            enc_hook=_plain,
        )

    def decode(self, raw: bytes) -> Snapshot:
        """Return the snapshot. Raises RmapdError where the bytes are of another rmapd."""
        try:
            whole = msgspec.msgpack.decode(raw, type=_Whole)
        except (msgspec.DecodeError, ValueError) as error:
            raise RmapdError(
                "cannot read the daemon's report",
                why=str(error),
                hint="the same version of rmapd as the daemon's",
            ) from error
        found = {name: getattr(whole.fields, name) for name in whole.fields.__struct_fields__}
        return Snapshot(
            invariants=discover(),
            protocols=tuple(
                ProtocolVerdict(self._protocol(one.key), one.windows, one.rulings)
                for one in whole.protocols
            ),
            lock_graph=tuple(
                LockNesting(
                    one.held,
                    one.taken,
                    one.modes,
                    one.functions,
                    self._protocol(one.key),
                    one.stack,
                    one.cycle,
                )
                for one in whole.lock_graph
            ),
            **found,
        )

    def _protocol(self, key: bytes) -> Protocol:
        return self._encoding.decode(key)


def _plain(value: object) -> object:
    """Return what msgspec can encode for a mapping that is no dict."""
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(type(value).__name__)
