"""Decode and encode protocols: struct protocol_key of probes/include/shared.h."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tracer.errors import RmapdError
from tracer.protocol.model import (
    FLAGS,
    Call,
    Commit,
    Context,
    Follows,
    Geometry,
    Group,
    Held,
    Kept,
    Kind,
    Lock,
    Locking,
    Lost,
    Overlong,
    Owner,
    Part,
    Protocol,
    Step,
    Tree,
    TreeStep,
    Visit,
    Walker,
    joined,
)
from tracer.tables.c_structs import Layouts

_OWNERS = tuple(Owner)
_LOCKS, _KINDS, _TREES, _PARTS = tuple(Lock), tuple(Kind), tuple(Tree), tuple(Part)
_HELD = ("mmap", "i_mmap", "anon")
_MOST_IN_A_GROUP = 8


class Encoding:
    """Decodes and encodes protocols by the layouts of the header that the probes include."""

    def __init__(self, layouts: Layouts) -> None:
        self._key = layouts.structs["protocol_key"]
        self._most = self._key.size - 8
        self._at = layouts.constants
        self._windows = tuple(
            name.removeprefix("WINDOW_") for name in layouts.enums["window"] if name != "WINDOWS"
        )
        self._steps = self._every_step()
        self._codes = {step: code for code, step in self._steps.items()}

    @property
    def windows(self) -> tuple[str, ...]:
        """The functions of enum window."""
        return self._windows

    def _every_step(self) -> dict[int, Step]:
        """Return the step of each byte, except for repeats."""
        at = self._at
        steps: dict[int, Step] = {at["STEP_LOST"]: Lost(), at["STEP_OVERLONG"]: Overlong()}
        for n, tree in enumerate(_TREES):
            for enters in (False, True):
                steps[at["STEP_TREE_NEW"] + 2 * n + enters] = TreeStep(tree, enters, None)
                for m, owner in enumerate(_OWNERS):
                    steps[at["STEP_TREE"] + (n * 2 + enters) * 4 + m] = TreeStep(
                        tree, enters, owner
                    )
        for n, lock in enumerate(_LOCKS):
            for m, kind in enumerate(_KINDS):
                steps[at["STEP_LOCK"] + n * len(_KINDS) + m] = Locking(lock, kind)
        for m, owner in enumerate(_OWNERS):
            steps[at["STEP_VISIT"] + m] = Visit(owner)
            for n, part in enumerate(_PARTS):
                steps[at["STEP_COMMIT"] + n * 4 + m] = Commit(((part, owner),))
        return steps | {at["STEP_CALL"] + n: Call(window) for n, window in enumerate(self._windows)}

    def decode(self, key: bytes) -> Protocol:
        """Return the protocol of a key of the map `protocols`; RmapdError if it is invalid."""
        if len(key) != self._key.size:
            raise _unreadable(key, f"{len(key)} bytes instead of {self._key.size}")
        raw = self._key.unpack(key)
        if raw.window >= len(self._windows):
            raise _unreadable(key, f"window {raw.window} is not in enum window")
        codes = bytes(raw.steps).rstrip(b"\0")
        return Protocol(
            self._windows[raw.window],
            self._context(key, raw.context),
            raw.error,
            self._decoded(key, codes),
        )

    def _decoded(self, key: bytes, codes: bytes) -> tuple[Step, ...]:
        first = self._at["STEP_REPEAT"]
        found: list[tuple[Step, int]] = []  # a step and its length in bytes
        for code in codes:
            if first <= code < first + _MOST_IN_A_GROUP:
                group = _taken(found, code - first + 1)
                if not group:
                    raise _unreadable(
                        key, f"a repeat of {code - first + 1} steps that are not there"
                    )
                found.append(
                    (Group(joined(step for step, _ in group)), sum(size for _, size in group) + 1)
                )
            elif code in self._steps:
                found.append((self._steps[code], 1))
            else:
                raise _unreadable(key, f"step {code} is not in enum step")
        return joined(step for step, _ in found)

    def _context(self, key: bytes, bits: int) -> Context:
        at = self._at

        def field(name: str, width: int) -> int:
            return bits >> at[f"CONTEXT_{name}_SHIFT"] & (1 << width) - 1

        def held(when: str) -> Held:
            return Held(*(_OWNERS[field(f"{when}_{name.upper()}", 2)] for name in _HELD))

        geometry, walker = field("GEOMETRY", 3), field("WALKER", 3)
        if geometry >= len(Geometry) or walker >= len(Walker):
            raise _unreadable(key, f"context {bits:#x} has bits that enum context does not name")
        return Context(
            **{name: bool(bits & at[f"CONTEXT_{name.upper()}"]) for name in FLAGS},
            entry=held("ENTRY"),
            exit=held("EXIT"),
            geometry=tuple(Geometry)[geometry],
            follows=tuple(Follows)[field("FOLLOWS", 2)],
            walker=tuple(Walker)[walker],
            kept=tuple(Kept)[field("KEPT", 3)],
        )

    def encode(self, protocol: Protocol) -> bytes:
        """Return the key of a protocol; RmapdError if the kernel could not have written it."""
        if protocol.window not in self._windows:
            raise RmapdError(
                f"cannot encode {protocol.window}",
                why="it is not in enum window",
                hint=f"one of {', '.join(self._windows)}",
            )
        codes = self._encoded(protocol.steps)
        if len(codes) > self._most:
            raise RmapdError(
                f"cannot encode a protocol of {protocol.window}",
                why=f"{len(codes)} steps, and the kernel's table holds {self._most}",
                hint="fold repeats: {anon+}*",
            )
        members = self._key.code.pack(*codes.ljust(self._most, b"\0"), 0, 0, 0)[: self._most]
        tail = self._key.pack(
            context=self._bits(protocol.context),
            window=self._windows.index(protocol.window),
            error=protocol.error,
        )
        return members + tail[self._most :]

    def _encoded(self, steps: Iterable[Step]) -> bytes:
        out = bytearray()
        for step in steps:
            if isinstance(step, Group):
                inner = self._encoded(step.steps)
                if not 1 <= len(inner) <= _MOST_IN_A_GROUP:
                    raise RmapdError(
                        "cannot encode a repeat",
                        why=f"{len(inner)} steps; the kernel folds 1 to {_MOST_IN_A_GROUP}",
                    )
                out += inner + bytes((self._at["STEP_REPEAT"] + len(inner) - 1,))
            elif isinstance(step, Commit):
                out += bytes(self._codes[Commit((part,))] for part in step.parts)
            elif isinstance(step, Call) and step not in self._codes:
                raise RmapdError(
                    f"cannot encode a call of {step.window}", why="it is not in enum window"
                )
            else:
                out.append(self._codes[step])
        return bytes(out)

    def _bits(self, context: Context) -> int:
        at = self._at
        bits = sum(at[f"CONTEXT_{name.upper()}"] for name in FLAGS if getattr(context, name))
        for when, held in (("ENTRY", context.entry), ("EXIT", context.exit)):
            for name in _HELD:
                bits |= (
                    _OWNERS.index(getattr(held, name)) << at[f"CONTEXT_{when}_{name.upper()}_SHIFT"]
                )
        bits |= tuple(Geometry).index(context.geometry) << at["CONTEXT_GEOMETRY_SHIFT"]
        bits |= tuple(Follows).index(context.follows) << at["CONTEXT_FOLLOWS_SHIFT"]
        bits |= tuple(Kept).index(context.kept) << at["CONTEXT_KEPT_SHIFT"]
        return bits | tuple(Walker).index(context.walker) << at["CONTEXT_WALKER_SHIFT"]


def _taken(found: list[tuple[Step, int]], size: int) -> Sequence[tuple[Step, int]]:
    """Remove the last steps with `size` bytes and return them; () if no steps have that size."""
    n = 0
    while size > 0 and n < len(found):
        n += 1
        size -= found[-n][1]
    if size or not n:
        return ()
    taken = found[-n:]
    del found[-n:]
    return taken


def _unreadable(key: bytes, why: str) -> RmapdError:
    return RmapdError(
        f"cannot read the protocol {key.hex().rstrip('0') or '0'}",
        why=why,
        hint="report it as a defect: probes and daemon disagree",
    )
