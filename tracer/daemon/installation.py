"""Checks of the installation: the part of `rmapd doctor` that needs no probe."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tracer.attach.compile_cache import CompileCache
from tracer.config import STORE, Config
from tracer.errors import RmapdError
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel
from tracer.printable import without_login
from tracer.process import users

OK, NOTE, WRONG = "ok", "note", "wrong"
_CAPABILITIES = {"SETPCAP": 8, "SYS_ADMIN": 21, "SYSLOG": 34, "PERFMON": 38, "BPF": 39}
_WITHOUT = {
    "SYS_ADMIN": "without CAP_SYS_ADMIN no run times of programs, and no page-table oracle",
    "SYSLOG": "without CAP_SYSLOG no addresses of kernel symbols: stacks have no names",
    "SETPCAP": "without CAP_SETPCAP the bounding set is not emptied",
}
"""What a missing capability costs, where the others are enough to attach."""
DEBIAN_PACKAGES = "/usr/lib/python3/dist-packages"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http._log_exporter"
_IMPORT_SECONDS = 120.0
"""It takes 0.3 s; on an emulated CPU that others use, it took more than 20."""
_UNIT = ("LoadState", "UnitFileState", "ActiveState", "Result", "NRestarts")


@dataclass(frozen=True)
class Check:
    """The result of one check; hint: what to try where it is not ok."""

    name: str
    state: str
    text: str
    hint: str = ""


def _systemctl() -> str:
    command = ["systemctl", "show", "rmapd.service", *(f"--property={name}" for name in _UNIT)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout


def _unimportable(name: str) -> str:
    """Return why the module cannot be imported, or an empty text.

    A child tries it, as the compiler does: bcc may crash.
    """
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
    if not done.returncode:
        return ""
    output = done.stderr.decode(errors="replace").strip().splitlines()
    return output[-1] if output else f"importing it ends with {done.returncode}"


@dataclass(frozen=True)
class Host:
    """The host that is examined: its file systems, and questions that need a process.

    systemctl returns the unit's properties; unimportable, why a module cannot be imported; uid_of,
    the number of a user, None where there is none. version: of the kernel, as `uname -v` has it.
    """

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    state: Path = Path(STORE).parent
    run: Path = Path("/run")
    systemctl: Callable[[], str] = field(default=_systemctl)
    unimportable: Callable[[str], str] = field(default=_unimportable)
    uid_of: Callable[[str], int | None] = field(default=users.uid_of)
    version: str = field(default_factory=lambda: os.uname().version)

    def text(self, path: Path) -> str:
        """Return the content of a file of the kernel; empty where it cannot be read."""
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""


def examine(host: Host, configuration: Callable[[], Config], where: str) -> list[Check]:
    """Run all checks, also after one that fails. where: the configuration's source."""
    return [
        _bcc(host, configuration),
        _configuration(configuration, where),
        _unit(host),
        _state(host),
        _capabilities(host),
        _types(host),
        *_kernel_settings(host),
        _seccomp(host),
        *_user(host, configuration),
        *_otlp(host, configuration),
    ]


def _bcc(host: Host, configuration: Callable[[], Config]) -> Check:
    why = host.unimportable("bcc")
    if not why:
        return Check("bcc", OK, "installed")
    hint = "apt-get install python3-bpfcc, and a virtual environment with --system-site-packages"
    with contextlib.suppress(RmapdError):
        cache = configuration().cache
        count = len(CompileCache(Path(cache)).made_elsewhere()) if cache else 0
        if count:
            text = f"not installed; {cache} has files of rmapd compile ({count}): where one fits,"
            return Check("bcc", NOTE, f"{text} nothing is compiled", hint)
    return Check("bcc", WRONG, f"this Python cannot import bcc: {why}", hint)


def _configuration(configuration: Callable[[], Config], where: str) -> Check:
    try:
        configuration()
    except RmapdError as error:
        return Check("configuration", WRONG, f"{error.what}: {error.why}", error.hint)
    return Check("configuration", OK, f"{where} is valid")


def _unit(host: Host) -> Check:
    if not (host.run / "systemd/system").exists():
        return Check(
            "unit",
            NOTE,
            "systemd does not run here",
            "start `rmapd run` from the service manager of this system",
        )
    try:
        shown = dict(line.split("=", 1) for line in host.systemctl().splitlines() if "=" in line)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("unit", NOTE, f"systemctl did not answer: {error}")
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
    state, restarts = enabled or "neither enabled nor disabled", shown.get("NRestarts", "0")
    text = f"rmapd.service is {state}, {active}; restarted {restarts} times"
    if active == "failed" or result not in ("", "success"):
        return Check(
            "unit", WRONG, f"{text}; its last run ended with {result}", "journalctl -u rmapd"
        )
    if enabled == "enabled" and active == "active":
        return Check("unit", OK, text)
    return Check("unit", NOTE, text, "systemctl enable --now rmapd")


def _state(host: Host) -> Check:
    if not host.state.exists():
        return Check(
            "state directory",
            NOTE,
            f"{host.state} does not exist yet: the unit creates it at its first start",
        )
    if not os.access(host.state, os.W_OK | os.X_OK):
        return Check(
            "state directory",
            WRONG,
            f"{host.state} cannot be written",
            f"chown rmapd {host.state}",
        )
    return Check("state directory", OK, f"{host.state} can be written")


def _capabilities(host: Host) -> Check:
    """Attaching needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN; full data also CAP_SYSLOG."""
    held = effective(host.text(host.proc / "self/status"))
    if why := cannot_attach(held):
        return Check("privileges", WRONG, why, "sudo rmapd doctor")
    if lost := [loss for name, loss in _WITHOUT.items() if not held >> _CAPABILITIES[name] & 1]:
        return Check(
            "privileges",
            NOTE,
            f"enough to attach; {'; '.join(lost)}",
            "sudo, or the unit as it was installed",
        )
    return Check("privileges", OK, "enough to attach; `rmapd run` then drops them")


def effective(status: str) -> int:
    """Return the mask of effective capabilities in the text of /proc/PID/status."""
    return next(
        (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0
    )


def cannot_attach(held: int) -> str:
    """Return which capabilities are missing to load BPF programs; empty: none."""
    missing = [f"CAP_{name}" for name in ("BPF", "PERFMON") if not held >> _CAPABILITIES[name] & 1]
    if not missing or held >> _CAPABILITIES["SYS_ADMIN"] & 1:
        return ""
    names = " and ".join(missing)
    return f"{names} missing (CAP_BPF and CAP_PERFMON are enough, or CAP_SYS_ADMIN alone)"


def _types(host: Host) -> Check:
    if (host.sys / "kernel/btf/vmlinux").exists():
        return Check("BTF", OK, "the kernel has BTF types")
    return Check(
        "BTF",
        WRONG,
        f"no {host.sys / 'kernel/btf/vmlinux'}",
        "a kernel with CONFIG_DEBUG_INFO_BTF",
    )


def _kernel_settings(host: Host) -> Iterator[Check]:
    lockdown = host.text(host.sys / "kernel/security/lockdown")
    if "[confidentiality]" in lockdown:
        yield Check(
            "lockdown",
            WRONG,
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity or none",
        )
    else:
        yield Check("lockdown", OK, lockdown or "not in this kernel, or not visible here")
    hidden = host.text(host.proc / "sys/kernel/kptr_restrict")
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
        host.sys / part / "available_filter_functions"
        for part in ("kernel/tracing", "kernel/debug/tracing")
    ]
    if any(host.text(place) for place in places):
        yield Check("tracefs", OK, "lists the functions that can be traced")
    else:
        yield Check(
            "tracefs",
            NOTE,
            "not mounted: a notrace function is found only when attaching fails",
            "mount -t tracefs nodev /sys/kernel/tracing",
        )
    if host.text(host.sys / "kernel/debug/sched/preempt"):
        yield Check("debugfs", OK, "shows the preemption model")
    elif mode := _preemption(host):
        yield Check("debugfs", OK, f"not needed: how this kernel preempts is known ({mode})")
    else:
        text = (
            "does not show how this kernel preempts: rmapd assumes that it does not, and prefers"
            " fentry to kprobes"
        )
        yield Check("debugfs", NOTE, text, "mount -t debugfs nodev /sys/kernel/debug")


def _preemption(host: Host) -> str:
    def no_types() -> Btf:
        raise RmapdError("the types are not read here")

    release = os.uname().release
    return Kernel(release, no_types, host.sys, host.proc, version=host.version).preemption


def _seccomp(host: Host) -> Check:
    if why := host.unimportable("seccomp"):
        return Check(
            "seccomp", NOTE, f"no seccomp filter: {why}", "apt-get install python3-seccomp"
        )
    return Check("seccomp", OK, "libseccomp for Python is installed")


def _user(host: Host, configuration: Callable[[], Config]) -> Iterator[Check]:
    try:
        config = configuration()
    except RmapdError:
        return
    name, uid = config.user, host.uid_of(config.user)
    if not config.drop_privileges:
        yield Check("user", OK, "rmapd run stays the user that starts it (drop_privileges)")
    elif uid:
        yield Check("user", OK, f"rmapd run becomes {name} once attached")
    elif uid is None and name == users.OWN:
        text = f"there is no user {name}: the unit does not start, and rmapd run becomes nobody"
        yield Check("user", NOTE, text, "make install, or the Debian package")
    else:
        why = "it is root" if uid == 0 else "there is no such user"
        hint = "`user` in the configuration, or drop_privileges = false"
        yield Check("user", WRONG, f"rmapd run cannot become {name}: {why}", hint)


def _otlp(host: Host, configuration: Callable[[], Config]) -> Iterator[Check]:
    try:
        endpoint = without_login(configuration().otlp_endpoint)
    except RmapdError:
        return
    if endpoint and (why := host.unimportable(_EXPORTER)):
        yield Check(
            "OTLP",
            WRONG,
            f"otlp_endpoint is {endpoint}, but the exporter cannot be imported: {why}",
            "pip install 'rmapd[otlp]'",
        )
    elif endpoint:
        yield Check("OTLP", OK, f"violations are sent to {endpoint}")


def as_json(checks: list[Check]) -> dict[str, dict[str, str]]:
    """Return the checks as JSON, by name."""
    return {
        check.name: {"state": check.state, "says": check.text, "hint": check.hint}
        for check in checks
    }
