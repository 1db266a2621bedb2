"""Is rmapd installed as it should be? What `rmapd doctor` says before it attaches anything."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tracer.config import STORE, Config
from tracer.errors import RmapdError
from tracer.privileges import is_user

OK, NOTE, WRONG = "ok", "note", "wrong"
_CAPABILITIES = {"SETPCAP": 8, "SYS_ADMIN": 21, "SYSLOG": 34, "PERFMON": 38, "BPF": 39}
_ATTACHING = ("SYS_ADMIN", "SYSLOG", "PERFMON", "BPF")
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


def _module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@dataclass(frozen=True)
class Machine:
    """Where to look."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    state: Path = Path(STORE).parent
    run: Path = Path("/run")
    systemctl: Callable[[], str] = field(default=_systemctl)
    has: Callable[[str], bool] = field(default=_module)
    knows: Callable[[str], bool] = field(default=is_user)

    def text(self, path: Path) -> str:
        """What a file of the kernel says; empty where it does not."""
        try:
            return path.read_text().strip()
        except OSError:
            return ""


def examine(machine: Machine, configuration: Callable[[], Config], where: str) -> list[Check]:
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


def _bcc(machine: Machine) -> Check:
    if machine.has("bcc"):
        return Check("bcc", OK, "installed")
    return Check(
        "bcc",
        WRONG,
        "this Python has no module bcc",
        "apt-get install python3-bpfcc, and a virtual environment with --system-site-packages",
    )


def _configuration(configuration: Callable[[], Config], where: str) -> Check:
    try:
        configuration()
    except RmapdError as error:
        return Check("configuration", WRONG, f"{error.what}: {error.why}", error.hint)
    return Check("configuration", OK, f"{where} is valid")


def _unit(machine: Machine) -> Check:
    if not (machine.run / "systemd/system").exists():
        return Check("unit", NOTE, "systemd does not run here", "start `rmapd run` by whatever starts daemons here")
    try:
        shown = dict(line.split("=", 1) for line in machine.systemctl().splitlines() if "=" in line)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("unit", NOTE, f"systemctl gave no answer: {error}")
    if shown.get("LoadState") != "loaded":
        return Check("unit", NOTE, f"rmapd.service is {shown.get('LoadState') or 'unknown'}", "make install, or the Debian package")
    enabled, active, result = shown.get("UnitFileState", ""), shown.get("ActiveState", ""), shown.get("Result", "")
    says = f"rmapd.service is {enabled or 'neither enabled nor disabled'}, {active}; restarted {shown.get('NRestarts', '0')} times"
    if active == "failed" or result not in ("", "success"):
        return Check("unit", WRONG, f"{says}; its last run ended with {result}", "journalctl -u rmapd")
    if enabled == "enabled" and active == "active":
        return Check("unit", OK, says)
    return Check("unit", NOTE, says, "systemctl enable --now rmapd")


def _state(machine: Machine) -> Check:
    if not machine.state.exists():
        return Check("state directory", NOTE, f"{machine.state} is not there yet: the unit makes it at its first start")
    if not os.access(machine.state, os.W_OK | os.X_OK):
        return Check("state directory", WRONG, f"{machine.state} cannot be written", f"chown rmapd {machine.state}")
    return Check("state directory", OK, f"{machine.state} can be written")


def _capabilities(machine: Machine) -> Check:
    status = machine.text(machine.proc / "self/status")
    held = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    missing = [f"CAP_{name}" for name in _ATTACHING if not held >> _CAPABILITIES[name] & 1]
    if missing:
        return Check("privileges", WRONG, f"{', '.join(missing)} missing here", "sudo rmapd doctor")
    if not held >> _CAPABILITIES["SETPCAP"] & 1:
        return Check(
            "privileges", NOTE, "enough to attach; without CAP_SETPCAP the bounding set stays as it is", "the unit as it was installed"
        )
    return Check("privileges", OK, "enough to attach; `rmapd run` then gives them up")


def _types(machine: Machine) -> Check:
    if (machine.sys / "kernel/btf/vmlinux").exists():
        return Check("BTF", OK, "the kernel describes its types")
    return Check("BTF", WRONG, f"no {machine.sys / 'kernel/btf/vmlinux'}", "a kernel with CONFIG_DEBUG_INFO_BTF")


def _kernel_settings(machine: Machine) -> Iterator[Check]:
    lockdown = machine.text(machine.sys / "kernel/security/lockdown")
    if "[confidentiality]" in lockdown:
        yield Check("lockdown", WRONG, "confidentiality: BPF programs may not read kernel memory", "boot with lockdown=integrity or none")
    else:
        yield Check("lockdown", OK, lockdown or "not in this kernel, or not to be seen here")
    hidden = machine.text(machine.proc / "sys/kernel/kptr_restrict")
    if hidden == "2":
        yield Check("kptr_restrict", WRONG, "2: /proc/kallsyms shows no addresses to anyone", "sysctl kernel.kptr_restrict=1")
    else:
        yield Check("kptr_restrict", OK, f"{hidden or 'unknown'}: CAP_SYSLOG is enough to see addresses")
    places = [machine.sys / part / "available_filter_functions" for part in ("kernel/tracing", "kernel/debug/tracing")]
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


def _seccomp(machine: Machine) -> Check:
    if machine.has("seccomp"):
        return Check("seccomp", OK, "libseccomp for Python is installed")
    return Check("seccomp", NOTE, "no filter of rmapd's own: this Python has no module seccomp", "apt-get install python3-seccomp")


def _user(machine: Machine, configuration: Callable[[], Config]) -> Iterator[Check]:
    try:
        name = configuration().user
    except RmapdError:
        return
    if machine.knows(name):
        yield Check("user", OK, f"rmapd run becomes {name} once attached")
    else:
        says = f"there is no user {name}: the unit does not start, and rmapd run becomes nobody"
        yield Check("user", NOTE, says, "make install, or the Debian package")


def _otlp(machine: Machine, configuration: Callable[[], Config]) -> Iterator[Check]:
    try:
        endpoint = configuration().otlp_endpoint
    except RmapdError:
        return
    if endpoint and machine.has("opentelemetry"):
        yield Check("OTLP", OK, f"violations go to {endpoint}")
    elif endpoint:
        yield Check("OTLP", WRONG, f"otlp_endpoint is {endpoint} and the exporter is not installed", "pip install 'rmapd[otlp]'")


def as_text(checks: list[Check]) -> str:
    """For a terminal."""
    lines = ["installation"]
    for check in checks:
        lines.append(f"  {check.name:18} {check.state:5} {check.says}")
        if check.hint and check.state != OK:
            lines.append(f"  {'':24} try: {check.hint}")
    return "\n".join(lines) + "\n\n"


def as_json(checks: list[Check]) -> dict[str, dict[str, str]]:
    """By name."""
    return {check.name: {"state": check.state, "says": check.says, "hint": check.hint} for check in checks}
