"""Events of the ring buffer, decoded."""

from __future__ import annotations

import ctypes
import dataclasses

from tests.support.box import box
from tests.support.native import LAYOUTS
from tracer.tables.events import _DETAILS, Event


def test_event_has_cgroup_of_its_task() -> None:
    b = box()
    group, node, name = b.take(64), b.take(64), ctypes.create_string_buffer(b"session-1.scope")
    b.memory.append(name)
    css_set = b.take(64)
    b.set(b.task, "task_struct.cgroups", css_set)
    b.set(css_set, "css_set.dfl_cgrp", group)
    b.set(group, "cgroup.kn", node)
    b.set(node, "kernfs_node.id", 4242)
    b.set(node, "kernfs_node.name", ctypes.addressof(name))
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("unlink_anon_vmas", vma.at):
        pass
    (raw,) = b.native.events()
    assert b.tables.events.decode(raw).task == {
        "pid": 7,
        "tgid": 7,
        "comm": "harness",
        "cgroup": {"id": 4242, "name": "session-1.scope"},
    }


def test_every_event_kind_has_a_struct_of_the_union() -> None:
    assert {*_DETAILS} == {*LAYOUTS.enums["event_kind"]} - {"EVENT_KINDS"}
    members = {field.name for field in dataclasses.fields(Event)}
    for name in _DETAILS.values():
        assert {member for member, _, _ in LAYOUTS.structs[name].members} <= members
