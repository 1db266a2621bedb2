"""Boot a Debian kernel under virtme-ng with software emulation and this machine's root file system, run a command, get its output.

A guest that dies, hangs or oopses is an error that shows its console.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent.parent
CACHE = Path(os.environ.get("RMAPD_VM_CACHE", Path.home() / ".cache/rmapd-kernels"))
RESULTS = Path(os.environ.get("RMAPD_VM_RESULTS", tempfile.gettempdir())) / "rmapd-vm"
TSC = "tsc=reliable clocksource=tsc"
"""For the kernel's command line: the clock of real machines, instead of an emulated HPET (docs/KERNELS.md)."""
_BAD = re.compile(
    r"BUG:|kernel BUG at|Oops:|general protection fault|soft lockup|hung_task|Kernel panic|WARNING: CPU"
)
_PART = re.compile(r"Depends: (linux-(?:image|binary|modules|base)-\S+)")
_START = "rmapd-vm: the command starts here"  # what the emulated machine complained about before is not ours


class GuestError(Exception):
    """The guest did not end as it should; the message has the end of its console."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel of kernels.toml or bugs.toml."""

    name: str
    package: str
    suite: str
    source: str = ""


class _Ladder(msgspec.Struct, forbid_unknown_fields=True):
    kernel: list[Entry]


@dataclass(frozen=True)
class Result:
    """What a command did in a guest. folder keeps console, output and whatever the command wrote to $OUT."""

    code: int
    output: str
    folder: Path


def _listed(file: str) -> dict[str, Entry]:
    found = msgspec.toml.decode((Path(__file__).parent / file).read_bytes(), type=_Ladder)
    return {entry.name: entry for entry in found.kernel}


def ladder() -> dict[str, Entry]:
    return _listed("kernels.toml")


def kernels() -> dict[str, Entry]:
    """The ladder, and the kernels that are known for a bug."""
    return ladder() | _listed("bugs.toml")


def apt(suite: str, state: Path) -> list[str]:
    """apt options that see the machine's own mirror, in another suite where one is named, without touching the machine's lists."""
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
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    (state / "vm.sources").write_text(
        re.sub(r"^Suites:.*$", f"Suites: {suite}", own, flags=re.M) + "\n"
    )
    options = {
        "Dir::Etc::sourcelist": state / "vm.sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": state / "lists",
    }
    flags = [f"-o{key}={value}" for key, value in options.items()]
    subprocess.run(["apt-get", *flags, "-q", "update"], check=True, capture_output=True)
    return flags


def _packages(package: str, flags: list[str]) -> list[str]:
    """The package and what it depends on of the same kernel: from 6.19 on kernel and modules come in packages of their own."""
    wanted = [package]
    for one in wanted:
        listed = subprocess.run(
            ["apt-cache", *flags, "depends", one], check=True, capture_output=True, text=True
        ).stdout
        wanted += [found for found in _PART.findall(listed) if found not in wanted]
    return wanted


def image(name: str) -> Path:
    """The kernel image, fetched and unpacked on first use: boot/vmlinuz-RELEASE, modules under lib/modules beside it."""
    entry, home = kernels()[name], CACHE / name
    found = sorted(home.glob("boot/vmlinuz-*"))
    if found:
        return found[0]
    shutil.rmtree(home, ignore_errors=True)
    flags = apt(entry.suite, CACHE / f"{name}.apt")
    unpacked = CACHE / f"{name}.new"
    shutil.rmtree(unpacked, ignore_errors=True)
    (unpacked / "boot").mkdir(parents=True)
    subprocess.run(
        ["apt-get", *flags, "-q", "download", *_packages(entry.package, flags)],
        check=True,
        capture_output=True,
        cwd=unpacked,
    )
    for archive in unpacked.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
        archive.unlink()
    if not (unpacked / "lib").exists():
        (unpacked / "lib").symlink_to("usr/lib")
    for kernel in unpacked.glob("lib/modules/*/vmlinuz"):
        kernel.rename(unpacked / "boot" / f"vmlinuz-{kernel.parent.name}")
    (kernel,) = unpacked.glob("boot/vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    if not (unpacked / "lib/modules" / release / "modules.dep").exists():
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
) -> Result:
    """Boot kernel `name`, run a shell command in the checkout with $OUT writable, and come back with what it printed.

    one_thread: all CPUs in one thread of the emulator. Where they have one each, kernels die when functions are hooked, or let go, that
    another CPU is just calling (docs/KERNELS.md, 'Emulation').

    Raises GuestError where the guest does not come back, or the kernel complained (an oops, a warning) unless expect_bug.
    """
    folder = RESULTS / f"{name}-{label}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = f"export OUT={folder} PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={ROOT} PATH={ROOT}/.venv/bin:$PATH"
    body = f"{environment}\ncd {ROOT}\necho {_START} > /dev/kmsg\n( {command} ) > $OUT/output 2>&1\necho $? > $OUT/code\ndmesg > $OUT/dmesg\n"
    (folder / "command.sh").write_text(body)
    tools = str(Path(sys.executable).parent)
    vng = [
        f"{tools}/vng",
        "--disable-kvm",
        "--verbose",
        "--run",
        str(image(name)),
        "--cpus",
        str(cpus),
    ]
    vng += [
        "--memory",
        memory,
        "--force-9p",
        "--rwdir",
        str(folder),
        "--exec",
        f"sh {shlex.quote(str(folder / 'command.sh'))}",
    ]
    if one_thread:
        vng += ["--qemu-opts=-accel tcg,thread=single"]
    if append:
        vng += ["--append", append]
    if nodes > 1:
        share = int(memory.rstrip("G")) * 1024 // nodes
        vng += [word for node in range(nodes) for word in ("--numa", f"{share}M,cpus={node}")]
    with open(folder / "console", "wb") as console:
        path = {"PATH": f"{tools}:{os.environ['PATH']}"}
        boot = subprocess.Popen(
            vng,
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
                os.killpg(
                    boot.pid, signal.SIGKILL
                )  # vng starts qemu by way of others, which do not take it along
            boot.wait()
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


def _tail(folder: Path) -> str:
    parts = []
    for file in ("console", "output"):
        if (folder / file).exists():
            parts.append(
                f"--- {file}\n"
                + "\n".join((folder / file).read_text(errors="replace").splitlines()[-40:])
            )
    return "\n".join([*parts, f"logs: {folder}"])


def headers() -> Path:
    """Where the headers of the 6.1 kernel are, if they are installed."""
    return Path("/usr/src") / f"linux-headers-{image('6.1').name.removeprefix('vmlinuz-')}"


def faults(folder: Path) -> Path:
    """Build tests/faults for the 6.1 kernel in this folder."""
    shutil.copytree(ROOT / "tests/faults", folder, dirs_exist_ok=True)
    command = ["make", "-s", "-C", str(headers()), f"M={folder}", "modules"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GuestError(f"the fault module was not built:\n{done.stdout}{done.stderr}")
    return folder / "rmapd_faults.ko"
