"""Install the package on a fresh Debian and use the unit in each way that systemd offers.

Runs as root in the guest of test_systemd.py, with the package beside it. Prints each command with
its output; facts.json has the results for the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

URL = "http://127.0.0.1:9743"
CONFIG = Path("/etc/rmapd/rmapd.toml")
EMULATED_WATCHDOG_SECONDS = 150
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
facts: dict[str, Any] = {}


def emulated() -> bool:
    """Whether this machine is emulated, and so some twenty times slower than real ones.

    There, a read of the tables may take the thirty seconds of the unit's watchdog, and the BPF
    programs take more CPU time than the budget allows.
    """
    vendor = Path("/sys/class/dmi/id/sys_vendor")
    return vendor.exists() and vendor.read_text().strip() == "QEMU"


def shell(command: str, lines: int = 12) -> tuple[int, str]:
    """Run a command; print it and the last lines of its output. Return its exit code and output."""
    done = subprocess.run(
        command,
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    shown = done.stdout.splitlines()
    print(f"$ {command}" + (f"   (exit {done.returncode})" if done.returncode else ""))
    print(
        "\n".join(["  …"] * (len(shown) > lines) + [f"  {line}" for line in shown[-lines:]]),
        flush=True,
    )
    return done.returncode, done.stdout


def shown(*names: str) -> dict[str, str]:
    command = ["systemctl", "show", "rmapd", *(f"-p{name}" for name in names)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def pid() -> int:
    return int(shown("MainPID")["MainPID"])


def ready() -> int:
    """Return the HTTP status of /-/ready; 0 without an answer."""
    try:
        with urllib.request.urlopen(f"{URL}/-/ready", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def samples() -> dict[str, float]:
    with urllib.request.urlopen(f"{URL}/metrics", timeout=20) as answer:
        rows = (
            line.rpartition(" ")
            for line in answer.read().decode().splitlines()
            if not line.startswith("#")
        )
    return {name: float(value) for name, _, value in rows}


def programs() -> dict[int, str]:
    """Return the types of all BPF programs in this kernel by id, other programs' included."""
    text = subprocess.run(
        ["bpftool", "prog", "show", "--json"], capture_output=True, text=True, check=True
    ).stdout
    return {one["id"]: one["type"] for one in json.loads(text or "[]")}


def loaded_by(process: int) -> set[int]:
    """Return the ids of the programs that a process has open."""
    found = set()
    for entry in Path(f"/proc/{process}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found |= {
                int(line.split()[1])
                for line in entry.read_text().splitlines()
                if line.startswith("prog_id:")
            }
    return found


def left(of: set[int]) -> list[int]:
    """Return the programs that the kernel has not freed after up to a minute."""
    for _ in range(60):
        if not of & set(programs()):
            break
        time.sleep(1)
    return sorted(of & set(programs()))


def rights(of: int) -> dict[str, str]:
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{of}/status").read_text().splitlines()
    )
    return {
        name: fields[name].strip()
        for name in (
            "Name",
            "Uid",
            "Gid",
            "Groups",
            *CAPABILITIES,
            "NoNewPrivs",
            "Seccomp",
            "Seccomp_filters",
        )
    }


def install() -> None:
    shell("uname -r; systemctl --version | head -1; systemctl is-system-running --wait")
    facts["install"] = shell("dpkg -i /mnt/rmapd_*.deb")[0]
    Path("/etc/systemd/system/rmapd.service.d").mkdir()
    slow = (
        f"WatchdogSec={EMULATED_WATCHDOG_SECONDS}\nEnvironment=RMAPD_FIDELITY=full\n"
        if emulated()
        else ""
    )
    Path("/etc/systemd/system/rmapd.service.d/emulated.conf").write_text(
        f"[Service]\nTimeoutStartSec=1800\n{slow}"
    )
    shell("systemctl daemon-reload; systemctl cat rmapd | tail -3")
    code, text = shell("rmapd doctor --format json", lines=1)
    facts["doctor"] = json.loads(text) if code == 0 else text
    shell("rmapd doctor | sed -n '/installation/,/^$/p'", lines=40)


def kprobes() -> None:
    """Make the daemon of the unit prefer kprobes.

    It does so on a kernel that preempts and counts the runs that it leaves out.
    """
    script = Path("/usr/lib/rmapd/kprobes/rmapd")
    script.parent.mkdir()
    prefer = "running.Kernel.preempts, running.Kernel.kprobe_refused = True, ''"
    script.write_text(
        "#!/usr/lib/rmapd/bin/python3\nfrom tracer import cli\nfrom tracer.kernel import running\n"
        f"{prefer}\ncli.main()\n"
    )
    script.chmod(0o755)
    Path("/etc/systemd/system/rmapd.service.d/kprobes.conf").write_text(
        f"[Service]\nExecStart=\nExecStart={script} run\n"
    )
    shell("systemctl daemon-reload; systemctl cat rmapd | grep Exec")


def needs() -> None:
    """Find the capabilities that operations need on this kernel with Debian's settings."""
    program = "RMAPD_CACHE=/tmp/needs-cache /usr/lib/rmapd/bin/python3 /mnt/needs.py"
    shell(f"{program} /mnt/needs.json", lines=40)
    facts["needs"] = json.loads(Path("/mnt/needs.json").read_text())["needs"]


def older() -> None:
    """Leave a store that belongs to root, as an rmapd that kept its privileges does."""
    shell("RMAPD_DROP_PRIVILEGES=false rmapd run --duration 1 --listen 127.0.0.1:0")
    facts["older"] = owners("/var/lib/rmapd", "/var/lib/rmapd/rmapd.db")


def owners(*paths: str) -> dict[str, str]:
    found = {path: f"{Path(path).owner()} {Path(path).stat().st_mode & 0o777:o}" for path in paths}
    print(found)
    return found


def start() -> None:
    """Start the unit, and compare the state of systemd with /-/ready until it has started.

    READY=1 must not be sent before the gate is open.
    """
    seen, rights_before = [], {}
    began = time.monotonic()
    with subprocess.Popen(["systemctl", "start", "rmapd"]) as starting:
        while starting.poll() is None:
            state = shown("ActiveState", "MainPID")
            seen.append((state["ActiveState"], ready()))
            with contextlib.suppress(OSError):
                now = rights(int(state["MainPID"])) if int(state["MainPID"]) else {}
                if now.get("Name") == "rmapd" and int(now["CapPrm"], 16):
                    rights_before = now
            time.sleep(0.2)
    facts["start"] = {
        "code": starting.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "seen": sorted(set(seen)),
        "ready": ready(),
    }
    print(
        f"$ systemctl start rmapd   (exit {starting.returncode}, {facts['start']['seconds']} s; "
        f"meanwhile {sorted(set(seen))})"
    )
    facts["rights"] = {"attaching": rights_before, "judging": rights(pid())}
    shell("systemctl status --no-pager -n 0 rmapd")
    shell("journalctl -u rmapd -o cat --no-pager | grep -E 'INFO|not calibrated'")
    shell("curl -s -o /dev/null -w '%{http_code}\\n' 127.0.0.1:9743/-/ready")
    print("capabilities while attaching", rights_before)
    shell("grep -E 'Cap|NoNew|Seccomp:' /proc/$(systemctl show -P MainPID rmapd)/status")
    shell("grep -h CapPrm /proc/$(systemctl show -P MainPID rmapd)/task/*/status | sort | uniq -c")
    daemon = [int(task.name) for task in Path(f"/proc/{pid()}/task").iterdir()]
    helpers = [
        int(child) for child in Path(f"/proc/{pid()}/task/{pid()}/children").read_text().split()
    ]
    facts["threads"] = sorted({rights(task)["CapPrm"] for task in daemon})
    facts["helpers"] = [rights(helper) for helper in helpers]
    facts["ids"] = sorted(
        {
            f"{one['Uid']} {one['Gid']} {one['Groups']}".strip()
            for one in map(rights, daemon + helpers)
        }
    )
    shell("id rmapd; ps -o user,pid,args -p $(pgrep -d, -x rmapd)")
    facts["owners"] = owners(
        "/var/lib/rmapd",
        "/var/lib/rmapd/rmapd.db",
        "/run/rmapd",
        "/run/rmapd/rmapd.lock",
        "/run/rmapd/rmapd.lock.exec",
        "/run/rmapd/rmapd.lock.exec/socket",
        "/var/cache/rmapd",
    )
    facts["cached"] = sorted({path.owner() for path in Path("/var/cache/rmapd").iterdir()})
    facts["exec"] = shell("rmapd exec -- true", lines=40)
    facts["alone"] = shell("rmapd exec --daemon never -- true")
    asks = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('{}'); print(s.recv(4096))"
    path = "/run/rmapd/rmapd.lock.exec/socket"
    facts["as_the_user"] = shell(
        f'setpriv --reuid=rmapd --regid=rmapd --clear-groups python3 -c "{asks.format(path)}"'
    )
    shell(
        "systemctl show rmapd -p MemoryPeak -p MemoryCurrent -p MemoryMax "
        "-p TasksCurrent -p TasksMax"
    )
    ours = loaded_by(pid())
    kinds = Counter(kind for number, kind in programs().items() if number in ours)
    print(f"{len(ours)} BPF programs are open in the daemon: {dict(kinds)}")
    facts["running"], facts["kinds"] = len(ours), sorted(kinds)


def judge() -> None:
    before = samples()
    shell("python3 /mnt/migrate.py 8000 96")
    time.sleep(5)
    after = samples()
    wanted = (
        'rmapd_checks_total{invariant="M1",',
        "rmapd_violations_total{",
        "rmapd_oracle_ready",
        'rmapd_probe_runs_total{hook="set_migration_pte"',
    )
    facts["judged"] = {
        name: value - (before.get(name, 0) if "_total" in name else 0)
        for name, value in after.items()
        if name.startswith(wanted)
    }
    facts["coverage"] = {
        name: value for name, value in after.items() if name.startswith("rmapd_invariant_coverage")
    }
    facts["attached"] = sum(
        value for name, value in after.items() if name.startswith("rmapd_probe_attached")
    )


def reload() -> None:
    before, main = CONFIG.read_text(), pid()
    CONFIG.write_text("scan_seconds = 30.0\nrequire = ['M1']\n" + before)
    good = shell("systemctl reload rmapd")[0]
    time.sleep(4)
    taken = shell("journalctl -u rmapd -o cat --no-pager | grep 'configuration read again'")[1]
    CONFIG.write_text("scan_second = 30.0\n" + before)
    bad = shell("systemctl reload rmapd")[0]
    refused = shell(
        "journalctl -u rmapd -o cat --no-pager -n 20 | grep -A1 'rmapd: the configuration'"
    )[1]
    CONFIG.write_text(before)
    state = shown("ActiveState")["ActiveState"]
    facts["reload"] = {
        "good": good,
        "taken": taken,
        "bad": bad,
        "refused": refused,
        "same": pid() == main,
        "state": state,
        "ready": ready(),
    }


def watchdog() -> None:
    """Stop the daemon: it sends no WATCHDOG=1, and systemd kills it and starts another."""
    main, began = pid(), time.monotonic()
    print(f"$ kill -STOP {main}")
    os.kill(main, signal.SIGSTOP)
    killed = 0.0
    while time.monotonic() - began < 2000:
        state = shown("ActiveState", "MainPID", "NRestarts", "Result")
        killed = killed or (
            round(time.monotonic() - began, 1) if state["MainPID"] != str(main) else 0.0
        )
        if state["MainPID"] not in ("0", str(main)) and state["ActiveState"] == "active":
            break
        time.sleep(0.5)
    limit = EMULATED_WATCHDOG_SECONDS if emulated() else 30
    facts["watchdog"] = {
        "limit": limit,
        "killed": killed,
        "back": round(time.monotonic() - began, 1),
        "restarts": state["NRestarts"],
        "ready": ready(),
    }
    print(f"killed after {killed} s, ready again after {facts['watchdog']['back']} s")
    shell(
        "journalctl -u rmapd -o short-monotonic --no-pager"
        " | grep -E 'systemd.*(atchdog|killed|Failed|restart|Started)'"
    )
    facts["watchdog"]["found"] = shell(
        "journalctl -u rmapd -o cat --no-pager | grep 'found after a crash'"
    )[1]


def stop() -> None:
    ours, kept = loaded_by(pid()), int(shown("NFileDescriptorStore")["NFileDescriptorStore"])
    code = shell("systemctl stop rmapd")[0]
    shell("systemctl show rmapd -p ActiveState -p Result -p ExecMainStatus -p NRestarts")
    shell("journalctl -u rmapd -o cat --no-pager -n 4")
    facts["stop"] = {
        "code": code,
        **shown("ActiveState", "Result", "ExecMainStatus"),
        "left": left(ours),
    }
    facts["stop"]["kept"] = kept, int(shown("NFileDescriptorStore")["NFileDescriptorStore"])
    print(f"of its {len(ours)} BPF programs are left: {facts['stop']['left']}")


def pages() -> None:
    """Look for what the package brings beside the program, and for compiled caches in it."""
    listed = shell("dpkg -L rmapd", lines=1)[1].splitlines()
    facts["pages"] = sorted(Path(path).name for path in listed if "/man/man1/rmapd" in path)
    facts["completions"] = [path for path in listed if "completions" in path and "rmapd" in path]
    facts["caches"] = [path for path in listed if "__pycache__" in path]
    facts["compiled"] = len(list(Path("/usr/lib/rmapd/lib").rglob("*.pyc")))


def upgrade() -> None:
    """Install a later version while the unit runs: it is restarted, and ready again."""
    shell("systemctl start rmapd")
    before = pid()
    shell("rm -rf /tmp/next; dpkg-deb -R /mnt/rmapd_*.deb /tmp/next")
    shell("sed -i 's/^Version: .*/&+next/' /tmp/next/DEBIAN/control")
    shell("dpkg-deb --root-owner-group -b /tmp/next /tmp/next.deb")
    code = shell("dpkg -i /tmp/next.deb")[0]
    for _ in range(1800):
        if shown("ActiveState")["ActiveState"] == "active" and ready() == 200:
            break
        time.sleep(1)
    facts["upgrade"] = {
        "code": code,
        "version": shell("dpkg-query -W -f '${Version}' rmapd")[1],
        "restarted": pid() not in (0, before),
        "state": shown("ActiveState")["ActiveState"],
        "ready": ready(),
    }


def without_bcc() -> None:
    """Compile, remove BCC, and start the unit from the objects alone."""
    code = shell("rmapd compile")[0]
    shell("systemctl stop rmapd; find /var/cache/rmapd -type f ! -name '*.objects' -delete")
    removed = shell("dpkg --remove --force-depends python3-bpfcc")[0]
    started = shell("systemctl start rmapd")[0]
    doctor = shell("systemctl stop rmapd; rmapd doctor --format json", lines=1)[1]
    report = json.loads(doctor) if doctor.startswith("{") else {}
    facts["without_bcc"] = {
        "compiled": code,
        "removed": removed,
        "started": started,
        "bcc": report.get("installation", {}).get("bcc", {}).get("state"),
        "programs": report.get("capabilities", {}).get("programs", doctor),
        "same": report.get("invariants") == facts["doctor"]["invariants"],
    }


def remove() -> None:
    code, text = shell("systemd-analyze security --no-pager rmapd", lines=60)
    found = re.search(r"Overall exposure level for rmapd.service: ([\d.]+)", text)
    facts["security"] = float(found[1]) if found else text
    facts["enable"] = shell("systemctl enable rmapd")[0]
    shell("rmapd doctor | grep -E '^  (unit|configuration|state)'")
    shell("systemctl start rmapd")
    ours = loaded_by(pid())
    facts["remove"] = shell("dpkg -r rmapd")[0]
    facts["removed"] = {
        "left": left(ours),
        "unit": Path("/lib/systemd/system/rmapd.service").exists(),
        "configuration": CONFIG.exists(),
    }
    print("after dpkg -r:", facts["removed"], code)


def main(*parts: str) -> None:
    try:
        for part in parts or (
            "install",
            "pages",
            "needs",
            "older",
            "start",
            "judge",
            "reload",
            "watchdog",
            "stop",
            "upgrade",
            "without_bcc",
            "remove",
        ):
            print(f"\n# {part}", flush=True)
            globals()[part]()
    finally:
        Path("/mnt/facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
