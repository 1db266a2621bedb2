"""Is rmapd installed as it should be? What `rmapd doctor` says before it attaches anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tracer.config import STORE, Config
from tracer.errors import RmapdError
from tracer.printable import printable
from tracer.process.privileges import is_user

OK, NOTE, WRONG = "ok", "note", "wrong"
_CAPABILITIES = {"SETPCAP": 8, "SYS_ADMIN": 21, "SYSLOG": 34, "PERFMON": 38, "BPF": 39}
_WITHOUT = {
    "SYS_ADMIN": "without CAP_SYS_ADMIN no run times of programs, and no page-table oracle",
    "SYSLOG": "without CAP_SYSLOG no addresses of kernel symbols: stacks have no names",
    "SETPCAP": "without CAP_SETPCAP the bounding set stays as it is",
}
"""What is lost where all can be attached, by the capability that is missing."""
DEBIAN_PACKAGES = "/usr/lib/python3/dist-packages"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http._log_exporter"
_IMPORT_SECONDS = 20.0
_UNIT = ("LoadState", "UnitFileState", "ActiveState", "Result", "NRestarts")


@dataclass(frozen=True)
class Check:
    """One thing looked at; hint: what to try where it is not ok."""

    name: str
    state: str
    says: str
    hint: str = ""


def _systemctl() -> str:
    command = ["systemctl", "show", "rmapd.service", *(f"--property={name}" for name in _UNIT)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout


def _unimportable(name: str) -> str:
    """Why the module cannot be imported, tried in a process of its own as the compiler does it (bcc may crash); empty: it can."""
    path = os.pathsep.join([*filter(None, sys.path), DEBIAN_PACKAGES])
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            capture_output=True,
            check=False,
            timeout=_IMPORT_SECONDS,
            env={**os.environ, "PYTHONPATH": path},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return (
        ""
        if not done.returncode
        else said[-1]
        if said
        else f"importing it ends with {done.returncode}"
    )


@dataclass(frozen=True)
class Probed:
    """Where to look."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    state: Path = Path(STORE).parent
    run: Path = Path("/run")
    systemctl: Callable[[], str] = field(default=_systemctl)
    unimportable: Callable[[str], str] = field(default=_unimportable)
    knows: Callable[[str], bool] = field(default=is_user)

    def text(self, path: Path) -> str:
        """What a file of the kernel says; empty where it does not."""
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""


def examine(machine: Probed, configuration: Callable[[], Config], where: str) -> list[Check]:
    """Everything, each check on its own: one that is wrong hides no other."""
    return [
        _bcc(machine),
        _configuration(configuration, where),
        _unit(machine),
        _state(machine),
        _capabilities(machine),
        _types(machine),
        *_kernel_settings(machine),
        _seccomp(machine),
        *_user(machine, configuration),
        *_otlp(machine, configuration),
    ]


def _bcc(machine: Probed) -> Check:
    why = machine.unimportable("bcc")
    if not why:
        return Check("bcc", OK, "installed")
    hint = "apt-get install python3-bpfcc, and a virtual environment with --system-site-packages"
    return Check("bcc", WRONG, f"this Python cannot import bcc: {why}", hint)


def _configuration(configuration: Callable[[], Config], where: str) -> Check:
    try:
        configuration()
    except RmapdError as error:
        return Check("configuration", WRONG, f"{error.what}: {error.why}", error.hint)
    return Check("configuration", OK, f"{where} is valid")


def _unit(machine: Probed) -> Check:
    if not (machine.run / "systemd/system").exists():
        return Check(
            "unit",
            NOTE,
            "systemd does not run here",
            "start `rmapd run` by whatever starts daemons here",
        )
    try:
        shown = dict(line.split("=", 1) for line in machine.systemctl().splitlines() if "=" in line)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("unit", NOTE, f"systemctl gave no answer: {error}")
    if shown.get("LoadState") != "loaded":
        return Check(
            "unit",
            NOTE,
            f"rmapd.service is {shown.get('LoadState') or 'unknown'}",
            "make install, or the Debian package",
        )
    enabled, active, result = (
        shown.get("UnitFileState", ""),
        shown.get("ActiveState", ""),
        shown.get("Result", ""),
    )
    says = f"rmapd.service is {enabled or 'neither enabled nor disabled'}, {active}; restarted {shown.get('NRestarts', '0')} times"
    if active == "failed" or result not in ("", "success"):
        return Check(
            "unit", WRONG, f"{says}; its last run ended with {result}", "journalctl -u rmapd"
        )
    if enabled == "enabled" and active == "active":
        return Check("unit", OK, says)
    return Check("unit", NOTE, says, "systemctl enable --now rmapd")


def _state(machine: Probed) -> Check:
    if not machine.state.exists():
        return Check(
            "state directory",
            NOTE,
            f"{machine.state} is not there yet: the unit makes it at its first start",
        )
    if not os.access(machine.state, os.W_OK | os.X_OK):
        return Check(
            "state directory",
            WRONG,
            f"{machine.state} cannot be written",
            f"chown rmapd {machine.state}",
        )
    return Check("state directory", OK, f"{machine.state} can be written")


def _capabilities(machine: Probed) -> Check:
    """Attaching takes CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON; to see all, CAP_SYS_ADMIN and CAP_SYSLOG."""
    held = effective(machine.text(machine.proc / "self/status"))
    if why := cannot_attach(held):
        return Check("privileges", WRONG, why, "sudo rmapd doctor")
    if lost := [says for name, says in _WITHOUT.items() if not held >> _CAPABILITIES[name] & 1]:
        return Check(
            "privileges",
            NOTE,
            f"enough to attach; {'; '.join(lost)}",
            "sudo, or the unit as it was installed",
        )
    return Check("privileges", OK, "enough to attach; `rmapd run` then gives them up")


def effective(status: str) -> int:
    """The effective capabilities in a /proc/PID/status, as a mask."""
    return next(
        (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0
    )


def cannot_attach(held: int) -> str:
    """What is missing of the capabilities that loading BPF programs takes; empty: nothing is."""
    missing = [f"CAP_{name}" for name in ("BPF", "PERFMON") if not held >> _CAPABILITIES[name] & 1]
    if not missing or held >> _CAPABILITIES["SYS_ADMIN"] & 1:
        return ""
    return f"{' and '.join(missing)} missing (CAP_BPF and CAP_PERFMON are enough, or CAP_SYS_ADMIN instead of both)"


def _types(machine: Probed) -> Check:
    if (machine.sys / "kernel/btf/vmlinux").exists():
        return Check("BTF", OK, "the kernel describes its types")
    return Check(
        "BTF",
        WRONG,
        f"no {machine.sys / 'kernel/btf/vmlinux'}",
        "a kernel with CONFIG_DEBUG_INFO_BTF",
    )


def _kernel_settings(machine: Probed) -> Iterator[Check]:
    lockdown = machine.text(machine.sys / "kernel/security/lockdown")
    if "[confidentiality]" in lockdown:
        yield Check(
            "lockdown",
            WRONG,
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity or none",
        )
    else:
        yield Check("lockdown", OK, lockdown or "not in this kernel, or not to be seen here")
    hidden = machine.text(machine.proc / "sys/kernel/kptr_restrict")
    if hidden == "2":
        yield Check(
            "kptr_restrict",
            WRONG,
            "2: /proc/kallsyms shows no addresses to anyone",
            "sysctl kernel.kptr_restrict=1",
        )
    else:
        yield Check(
            "kptr_restrict", OK, f"{hidden or 'unknown'}: CAP_SYSLOG is enough to see addresses"
        )
    places = [
        machine.sys / part / "available_filter_functions"
        for part in ("kernel/tracing", "kernel/debug/tracing")
    ]
    if any(machine.text(place) for place in places):
        yield Check("tracefs", OK, "tells which functions can be traced")
    else:
        yield Check(
            "tracefs",
            NOTE,
            "not mounted: that a function is notrace shows only when attaching fails",
            "mount -t tracefs nodev /sys/kernel/tracing",
        )
    if machine.text(machine.sys / "kernel/debug/sched/preempt"):
        yield Check("debugfs", OK, "tells how this kernel preempts")
    else:
        says = "does not tell how this kernel preempts: taken as not at all, so fentry comes before kprobes"
        yield Check("debugfs", NOTE, says, "mount -t debugfs nodev /sys/kernel/debug")


def _seccomp(machine: Probed) -> Check:
    if why := machine.unimportable("seccomp"):
        return Check(
            "seccomp", NOTE, f"no filter of rmapd's own: {why}", "apt-get install python3-seccomp"
        )
    return Check("seccomp", OK, "libseccomp for Python is installed")


def _user(machine: Probed, configuration: Callable[[], Config]) -> Iterator[Check]:
    try:
        name = configuration().user
    except RmapdError:
        return
    if machine.knows(name):
        yield Check("user", OK, f"rmapd run becomes {name} once attached")
    else:
        says = f"there is no user {name}: the unit does not start, and rmapd run becomes nobody"
        yield Check("user", NOTE, says, "make install, or the Debian package")


def _otlp(machine: Probed, configuration: Callable[[], Config]) -> Iterator[Check]:
    try:
        endpoint = configuration().otlp_endpoint
    except RmapdError:
        return
    if endpoint and (why := machine.unimportable(_EXPORTER)):
        yield Check(
            "OTLP",
            WRONG,
            f"otlp_endpoint is {endpoint} and the exporter cannot be used: {why}",
            "pip install 'rmapd[otlp]'",
        )
    elif endpoint:
        yield Check("OTLP", OK, f"violations go to {endpoint}")


def as_text(checks: list[Check]) -> str:
    """For a terminal."""
    lines = ["installation"]
    for check in checks:
        lines.append(f"  {check.name:18} {check.state:5} {check.says}")
        if check.hint and check.state != OK:
            lines.append(f"  {'':24} try: {check.hint}")
    return "\n".join(map(printable, lines)) + "\n\n"


def as_json(checks: list[Check]) -> dict[str, dict[str, str]]:
    """By name."""
    return {
        check.name: {"state": check.state, "says": check.says, "hint": check.hint}
        for check in checks
    }
