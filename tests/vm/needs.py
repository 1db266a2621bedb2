"""Find the capabilities that each kernel operation of rmapd needs, by trying.

Each attempt is a child with one capability.

usage: needs.py [OUT.json]      (root; attaches like `rmapd exec`, prints a table)
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from pyprctl import Cap, CapState, set_no_new_privs

from tracer.bpf import links
from tracer.bpf import programs as program
from tracer.bpf.maps import Map
from tracer.config import Config
from tracer.daemon.probes import running_kernel
from tracer.daemon.rehearsal import rehearse
from tracer.daemon.session import Session, open_session
from tracer.kernel.running import Kernel
from tracer.memory import calibration

CANDIDATES = [
    set[Cap](),
    {Cap.BPF},
    {Cap.PERFMON},
    {Cap.SYSLOG},
    {Cap.SYS_ADMIN},
    {Cap.BPF, Cap.PERFMON},
    set(Cap.probe_supported()),
]


def asked(session: Session) -> dict[str, Callable[[], object]]:
    """Return the operations by name; each returns something true or raises."""
    table, programs, oracle = (
        session.probes.loaded.maps["params"],
        session.probes.loaded.programs,
        session.checker.open_cases.oracle,
    )
    iterator, some = session.probes.loaded.iterator("tasks"), programs["calibrate"][0]
    page = mmap.mmap(-1, mmap.PAGESIZE)
    assert oracle
    assert iterator
    first = oracle.mms()[:1]
    rehearse(session)  # opens /proc/kallsyms, as the daemon does before it drops privileges
    return {
        "attached: look a map up": lambda: table.lookup(bytes(4)),
        "attached: write a map": lambda: _rewritten(table),
        "attached: read a map in batches": lambda: (
            list(session.probes.loaded.maps["ledger"].items()) or True
        ),
        "attached: delete from a map": lambda: (
            session.probes.loaded.maps["ledger"].delete(
                bytes(session.probes.loaded.maps["ledger"].key_size)
            )
            or True
        ),
        "attached: read the event ring": lambda: list(session.probes.ring.read()) or True,
        "attached: run the oracle (BPF_PROG_TEST_RUN)": lambda: oracle.ask(
            [(mm, 0) for mm in first]
        ),
        "attached: search page tables (BPF_PROG_TEST_RUN)": lambda: oracle.sweep(first).tables,
        "attached: list all mms (BPF_ITER_CREATE)": lambda: len(iterator.read()),
        "attached: a program's runs (BPF_OBJ_GET_INFO_BY_FD)": lambda: some.statistics().runs,
        "attached: read the kept /proc/kallsyms": session.probes.kernel.shows_addresses,
        "before: open /proc/kallsyms with addresses": lambda: Kernel(
            session.probes.kernel.release, session.probes.kernel.types
        ).shows_addresses(),
        "before: our own pagemap's pfns": lambda: _own_pfn(page),
        "before: statistics on (BPF_ENABLE_STATS)": lambda: program.enable_statistics() > 0,
        "before: load a program": lambda: program.load_program(
            "needs", "raw_tp", struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
        ),
        "before: attach a raw tracepoint": lambda: links.attach(
            programs["set_migration_pte"][0].fd, "raw_tp", "set_migration_pte"
        ),
        "before: attach a kprobe": lambda: (
            session.probes.kernel.kprobe_refused or _attach_kprobe(session)
        ),
        "before: the iterator's link (BPF_LINK_CREATE)": lambda: links.attach(
            programs["tasks"][0].fd, "iter", ""
        ),
        "tests: ids of programs (BPF_PROG_GET_NEXT_ID)": lambda: list(program.program_ids()),
    }


def _rewritten(table: Map) -> bool:
    before = table.lookup(bytes(4))
    assert before
    table.update(bytes(4), before)
    return True


def _own_pfn(page: mmap.mmap) -> int:
    page[0] = 1
    return calibration.own_pfn(calibration.mapping_address(page))


def _attach_kprobe(session: Session) -> object:
    loaded = next(
        (
            p
            for h in session.probes.loaded.hooks
            if h.how == "kprobe" and h.on
            for p in session.probes.loaded.programs[h.hook.name]
        ),
        None,
    )
    return (
        links.attach(loaded.fd, "kprobe", "do_brk_flags")
        if loaded
        else "no program is attached by kprobe here"
    )


def _allowed(ask: Callable[[], object], caps: set[Cap]) -> bool:
    """Whether a child with these capabilities and no others succeeds."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        set_no_new_privs()
        CapState(effective=caps, permitted=caps, inheritable=set()).set_current()
        os._exit(0 if ask() else 1)
    except BaseException:
        os._exit(1)


def _name(caps: set[Cap]) -> str:
    names = " ".join(sorted(cap.name for cap in caps))
    return "all" if len(caps) > 2 else names or "none"


def main(out: str = "") -> None:
    config = msgspec.structs.replace(
        Config(), lock_file="/tmp/rmapd-needs.lock", cache=os.environ["RMAPD_CACHE"]
    )
    sysctls = {
        name: Path(f"/proc/sys/kernel/{name}").read_text().strip()
        for name in ("unprivileged_bpf_disabled", "kptr_restrict", "perf_event_paranoid")
    }
    found: dict[str, list[str]] = {}
    with open_session(config, running_kernel()) as session:
        for what, ask in asked(session).items():
            enough = [caps for caps in CANDIDATES if _allowed(ask, caps)]
            found[what] = [
                _name(caps) for caps in enough if not any(less < caps for less in enough)
            ]
    print(os.uname().release, sysctls)
    for what, enough_names in found.items():
        print(f"  {what:52} {' or '.join(enough_names) or 'refused to all'}")
    if out:
        Path(out).write_text(
            json.dumps({"kernel": os.uname().release, "sysctls": sysctls, "needs": found}, indent=1)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
