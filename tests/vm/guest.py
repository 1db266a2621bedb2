"""Run a command on a Debian kernel in a virtme-ng guest.

The guest is emulated in software and has this machine's root file system; for arm64 it has one of
its own (arm64.py). A guest that dies, hangs or oopses raises an error with the end of its console.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.vm import arm64, bootstrap, memory_root
from tests.vm.machine import Machine

ROOT = Path(__file__).parent.parent.parent
CACHE = Path(os.environ.get("RMAPD_VM_CACHE", Path.home() / ".cache/rmapd-kernels"))
RESULTS = Path(os.environ.get("RMAPD_VM_RESULTS", tempfile.gettempdir())) / "rmapd-vm"
_TOOLS = Path(sys.executable).parent
_PARAMETERS = {"amd64": "tsc=reliable clocksource=tsc", "arm64": ""}
"""Of the kernel: use the TSC, as real machines do, not an emulated HPET (docs/KERNELS.md)."""
_BAD = re.compile(
    r"BUG:|kernel BUG at|Oops:|general protection fault|soft lockup|hung_task|Kernel panic"
    r"|Internal error: |WARNING: CPU|WARNING: .*, CPU#\d"
)
_PART = re.compile(r"Depends: (linux-(?:image|binary|modules|base)-\S+)")
_START = "rmapd-vm: the command starts here"
"""Complaints of the kernel before this line concern the emulated machine, not the command."""


class GuestError(Exception):
    """The guest failed; the message has the end of its console."""


class NotServedError(GuestError):
    """The suite has no such package."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel of kernels.toml, bugs.toml, variants.toml, rungs.toml or arm64.toml.

    arch: Debian's name of the machine. source: the package of its source. in_memory: there are no
    modules, or none for a file system, so its root file system is an initramfs.
    """

    name: str
    package: str
    suite: str
    arch: str = "amd64"
    source: str = ""
    in_memory: bool = False


class _Ladder(msgspec.Struct, forbid_unknown_fields=True):
    kernel: list[Entry]


@dataclass(frozen=True)
class Result:
    """The result of a command in a guest.

    folder has the console, the output and the files that the command wrote to $OUT.
    """

    code: int
    output: str
    folder: Path

    def report(self) -> dict[str, Any]:
        """Return the report in $OUT/r.json. Raises GuestError where there is none."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "r.json").read_text())
        except (OSError, ValueError) as error:
            raise GuestError(f"{error}\n{self.output}") from error
        return found


def _listed(file: str) -> dict[str, Entry]:
    found = msgspec.toml.decode((Path(__file__).parent / file).read_bytes(), type=_Ladder)
    return {entry.name: entry for entry in found.kernel}


def ladder() -> dict[str, Entry]:
    return _listed("kernels.toml")


def kernels(arch: str = "amd64") -> dict[str, Entry]:
    """Return every kernel of an architecture that is known, by version."""
    files = ("kernels.toml", "bugs.toml", "variants.toml", "rungs.toml", "arm64.toml")
    every = {name: entry for file in files for name, entry in _listed(file).items()}
    of_arch = {name: entry for name, entry in every.items() if entry.arch == arch}
    return dict(sorted(of_arch.items(), key=lambda item: _version(item[0])))


def known() -> dict[str, Entry]:
    """Return every kernel of every architecture."""
    return kernels() | kernels("arm64")


def _version(name: str) -> tuple[list[int], str]:
    numbers, _, flavour = name.partition("-")
    return [int(part) for part in numbers.split(".")], flavour


def apt(suite: str, state: Path, arch: str = "amd64") -> list[str]:
    """Return apt options for a suite of the machine's mirror; for "", none.

    state: the folder of their package lists; the machine's own lists stay as they are. arch: of
    the packages. Of another one than this machine's, the suite must be named.
    """
    if not suite:
        return []
    sources = "".join(
        path.read_text() + "\n\n" for path in Path("/etc/apt/sources.list.d").glob("*.sources")
    )
    own = next(
        (
            part
            for part in re.split(r"\n\s*\n", sources)
            if re.search(r"^Suites: *\S*$|^Suites: .*-updates", part, re.M)
        ),
        "",
    )
    if not own:
        raise GuestError("no deb822 source in /etc/apt/sources.list.d to derive the suite from")
    state.mkdir(parents=True, exist_ok=True)
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "vm.sources").write_text(
        re.sub(r"^Suites:.*$", f"Suites: {suite}", own, flags=re.M) + "\n"
    )
    options = {
        "Dir::Etc::sourcelist": state / "vm.sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": state / "lists",
    }
    if arch != "amd64":
        options |= {
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "Dir::State::status": "/dev/null",
            "Dir::Cache": state / "cache",
        }
    flags = [f"-o{key}={value}" for key, value in options.items()]
    # Else an index that could not be fetched is only a warning.
    _ask(["apt-get", *flags, "-oAPT::Update::Error-Mode=any", "-q", "update"])
    return flags


def _ask(command: list[str], folder: Path | None = None) -> str:
    """Run a command in a folder and return what it prints. Raises GuestError with its complaint."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise GuestError(f"{command[0]} exits with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def packages(package: str, flags: list[str], parts: re.Pattern[str] = _PART) -> list[str]:
    """Return the package and its dependencies of the same kernel. parts: finds one in a line.

    From 6.19 on the kernel and its modules are separate packages. Raises NotServedError where the
    suite has one of them no longer.
    """
    wanted = [package]
    for one in wanted:
        if not _ask(["apt-cache", *flags, "search", "--names-only", f"^{re.escape(one)}$"]):
            raise NotServedError(f"no package {one} is served")
        listed = _ask(["apt-cache", *flags, "depends", one])
        wanted += [found for found in parts.findall(listed) if found not in wanted]
    return wanted


def unpack(packages: list[str], flags: list[str], folder: Path) -> None:
    """Download packages and unpack them in a folder; install nothing."""
    _ask(["apt-get", *flags, "-q", "download", *packages], folder)
    for archive in folder.glob("*.deb"):
        _ask(["dpkg-deb", "-x", str(archive), str(folder)])
        archive.unlink()


def commit() -> str:
    """Return the short id of the commit that is checked out."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def fetching() -> Iterator[None]:
    """Let no other process fetch meanwhile: two run the tests, and both may need the same."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def image(name: str) -> Path:
    """Return the kernel image, boot/vmlinuz-RELEASE; fetch and unpack it on first use.

    The modules are in lib/modules beside boot.
    """
    with fetching():
        return _fetched(known()[name], CACHE / name)


def _fetched(entry: Entry, home: Path) -> Path:
    name = entry.name
    found = sorted(home.glob("boot/vmlinuz-*"))
    if found:
        return found[0]
    shutil.rmtree(home, ignore_errors=True)
    flags = apt(entry.suite, CACHE / f"{name}.apt", entry.arch)
    unpacked = CACHE / f"{name}.new"
    shutil.rmtree(unpacked, ignore_errors=True)
    (unpacked / "boot").mkdir(parents=True)
    unpack(packages(entry.package, flags), flags, unpacked)
    if not (unpacked / "lib").exists():
        (unpacked / "lib").symlink_to("usr/lib")
    for kernel in unpacked.glob("lib/modules/*/vmlinuz"):
        kernel.rename(unpacked / "boot" / f"vmlinuz-{kernel.parent.name}")
    (kernel,) = unpacked.glob("boot/vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    if not (entry.in_memory or (unpacked / "lib/modules" / release / "modules.dep").exists()):
        subprocess.run(["depmod", "-b", str(unpacked), release], check=True)
    unpacked.rename(home)
    return home / "boot" / kernel.name


def run(
    name: str,
    command: str,
    *,
    memory: str = "3G",
    nodes: int = 1,
    cpus: int = 2,
    timeout: float = 900,
    label: str = "run",
    append: str = "",
    expect_bug: bool = False,
    one_thread: bool = False,
    counted: bool = False,
    plugin: str = "",
    readable: Sequence[Path] = (),
    memory_tags: bool = False,
) -> Result:
    """Boot the kernel `name` and run a shell command in the checkout; $OUT is writable.

    Guests of a kernel share a cache of compiled probes: compiling takes most of a start there.

    timeout: seconds. one_thread: run all CPUs in one thread of the emulator. With a thread each,
    kernels die when a function is hooked or released while another CPU calls it (docs/KERNELS.md,
    'Emulation'). counted: the clock of the guest, which then has one CPU, is the number of its
    instructions, one a nanosecond; where all CPUs are idle it jumps to the next timer. plugin: of
    QEMU, with its arguments. readable: folders outside the checkout; guests of virtme-ng read all.
    memory_tags: arm64's MTE; without it the emulated machine has none.

    Raises GuestError if the guest dies or does not end in time, or if the kernel logs an oops or a
    warning without expect_bug.
    """
    folder = RESULTS / f"{name}-{label}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cache = RESULTS / f"{name}-cache"
    cache.mkdir(mode=0o700, exist_ok=True)
    entry = known()[name]
    programs = "" if entry.arch == "arm64" else f"{ROOT}/.venv/bin:"
    environment = (
        f"export OUT={folder} RMAPD_CACHE={cache} PYTHONDONTWRITEBYTECODE=1 "
        f"PYTHONPATH={ROOT} PATH={programs}$PATH"
    )
    body = (
        f"{environment}\ncd {ROOT}\necho {_START} > /dev/kmsg\n"
        f"( {command} ) > $OUT/output 2>&1\necho $? > $OUT/code\ndmesg > $OUT/dmesg\n"
    )
    (folder / "command.sh").write_text(body)
    accel = ["-accel", f"tcg,thread={'single' if one_thread or counted else 'multi'}"]
    accel += ["-icount", "shift=0,sleep=off"] if counted else []
    accel += ["-plugin", plugin] if plugin else []
    append = f"{_PARAMETERS[entry.arch]} {append}".strip()
    machine = Machine(memory, nodes, 1 if counted else cpus, accel, append, memory_tags)
    start = _STARTS["memory" if entry.in_memory else entry.arch](
        name, folder, cache, machine, readable
    )
    with open(folder / "console", "wb") as console:
        path = {"PATH": f"{_TOOLS}:{os.environ['PATH']}"}
        boot = subprocess.Popen(
            start,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            cwd=ROOT,
            env=os.environ | path,
            start_new_session=True,
        )
        try:
            boot.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise GuestError(
                f"kernel {name} did not end within {timeout:.0f} s\n{_tail(folder)}"
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                # vng starts qemu through other processes, which do not end it when they end
                os.killpg(boot.pid, signal.SIGKILL)
            boot.wait()
            if entry.in_memory:
                memory_root.receive(folder)
    if not (folder / "code").exists() or not (folder / "code").read_text().strip():
        raise GuestError(f"kernel {name} died\n{_tail(folder)}")
    dmesg = (
        (folder / "dmesg").read_text(errors="replace").partition(_START)[2]
        if (folder / "dmesg").exists()
        else ""
    )
    if not expect_bug and (bad := [line for line in dmesg.splitlines() if _BAD.search(line)]):
        raise GuestError(f"kernel {name} complained:\n" + "\n".join(bad) + f"\nlogs: {folder}")
    return Result(
        int((folder / "code").read_text()), (folder / "output").read_text(errors="replace"), folder
    )


def _in_memory(
    name: str, folder: Path, cache: Path, machine: Machine, readable: Sequence[Path]
) -> list[str]:
    base = CACHE / f"memory-root-{bootstrap.SUITE}.cpio"
    with fetching():
        memory_root.make(base)
    return memory_root.command(image(name), folder, cache, base, ROOT, machine, readable=readable)


def _virtme(
    name: str, folder: Path, cache: Path, machine: Machine, _readable: Sequence[Path]
) -> list[str]:
    start = [f"{_TOOLS}/vng", "--disable-kvm", "--verbose", "--run", str(image(name))]
    start += ["--cpus", str(machine.cpus), "--memory", machine.memory, "--force-9p"]
    start += ["--rwdir", str(folder), "--rwdir", str(cache)]
    start += ["--exec", f"sh {shlex.quote(str(folder / 'command.sh'))}"]
    start += [f"--qemu-opts={' '.join(machine.options)}"]
    start += ["--append", machine.append]
    if machine.nodes > 1:
        for node in range(machine.nodes):
            start += ["--numa", f"{machine.node_mb()}M,cpus={node}"]
    return start


def _arm64(
    name: str, folder: Path, cache: Path, machine: Machine, readable: Sequence[Path]
) -> list[str]:
    with fetching():
        disk = arm64.disk(CACHE, ROOT)
    return arm64.command(
        image(name), folder, disk, machine, readable=[ROOT, *readable], writable=[folder, cache]
    )


_STARTS = {"amd64": _virtme, "memory": _in_memory, "arm64": _arm64}
"""How a guest is started: each returns the command."""


def _tail(folder: Path) -> str:
    parts = []
    for file in ("console", "output"):
        if (folder / file).exists():
            parts.append(
                f"--- {file}\n"
                + "\n".join((folder / file).read_text(errors="replace").splitlines()[-40:])
            )
    return "\n".join([*parts, f"logs: {folder}"])
