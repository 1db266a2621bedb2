"""Measure the memory of the daemon: idle, over an hour of load, and with hundreds of findings.

usage: python -m tests.bench.memory run OUT.json [IDLE LOAD FINDINGS]     minutes; root
       python -m tests.bench.memory table OUT.json
       python -m tests.bench.memory plot OUT.json OUT.svg

Idle: nothing runs but what the machine runs by itself, and a scrape every 15 s. Load: of each 30 s
stress-ng runs for 10, with a stressor each of LOAD, and pages are migrated; 300 protocols that hold
are recorded, by rehearsal probes, because this machine's kernel may have no window hooks; every
five minutes all pages are read. Findings: 585 violations with signatures of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.userspace import HOLDING, cpu
from tests.live.conftest import ROOT, WORKLOAD, daemon, daemons_user
from tests.support.daemons import checker_of, fetch
from tests.support.rehearsal import A_RUN, WindowRecorder, make
from tests.support.violations import VIOLATING, variant
from tracer.report.svg import COLOUR, draw, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE_SECONDS = 15
CYCLE_SECONDS, BURST_SECONDS = 30, 10
PAGES_SECONDS = 300
PAGES_MOVED = 5000
WINDOWS_A_SECOND = 1000
SIGNATURES = 65  # of each invariant
VIOLATIONS_A_STEP = 2  # 8 a second: each is looked at and logged before the next
LOAD = ("fork", "mmap", "mremap", "brk", "mprotect", "munmap", "madvise", "stack", "rmap")
_SMALL = ("--mmap-bytes", "16M", "--mremap-bytes", "16M")
_PAGES = ("/", "/protocols", "/hooks", "/invariants/M1", "/api/v1/report", "/api/v1/status")
_ROLLUP = ("Rss", "Pss", "Private_Dirty", "Anonymous", "Pss_File", "Pss_Shmem")

_BUFFERS = ("._value", "._key", "._map", "._info", "._run", "._producer", "._consumer")
_STYLE = """<style>
svg { --ink: #1a2230; --muted: #55606e; --line: #dde2e8; --good: #1a6b3c; --warn: #7a4f00;
  --bad: #ad2018; --blue: #2458a6; font-family: sans-serif; background: #fff; }
</style>"""

Row = dict[str, Any]


def of_process(pid: int) -> Row:
    """Return sizes in bytes, descriptors and CPU seconds of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = dict(line.split(":", 1) for line in text.splitlines()[1:])
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        **{name: int(sizes[name].split()[0]) << 10 for name in _ROLLUP},
        "peak": int(peak.split()[1]) << 10,
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "cpu": cpu(pid),
    }


def of_kernel(pid: int) -> Row:
    """Return the bytes of a process's BPF maps, each once, and of the log of its checkpoint."""
    maps, log = dict[str, int](), 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            info = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
            lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
            if "map_id" in lines:
                maps[lines["map_id"]] = int(lines["memlock"])
            elif "rmapd-checker" in os.readlink(f"/proc/{pid}/fd/{name}"):
                log = os.stat(f"/proc/{pid}/fd/{name}").st_blocks * 512
    return {"maps": sum(maps.values()), "log": log}


@dataclass
class Watch:
    """Takes a sample of a daemon every 15 s. began: on time.monotonic()."""

    pid: int
    url: str
    folder: Path
    phase: str = "idle"
    began: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)
    held: dict[str, dict[str, int]] = field(default_factory=dict)
    bursts: Counter[str] = field(default_factory=Counter)

    def sample(self) -> None:
        """Scrape, then add a row."""
        page = fetch(f"{self.url}/metrics")[1]
        series = [line for line in page.splitlines() if line and not line.startswith("#")]
        counts = {
            name: sum(float(line.split()[-1]) for line in series if line.startswith(name))
            for name in ("rmapd_checks_total", "rmapd_windows_total", "rmapd_violations_total")
        }
        checker = checker_of(self.pid)
        self.rows.append(
            {
                "seconds": time.monotonic() - self.began,
                "phase": self.phase,
                "series": len(series),
                **counts,
                "checker": of_process(checker),
                "supervisor": of_process(self.pid),
                **of_kernel(checker),
                "store": sum(file.stat().st_size for file in self.folder.glob("store.db*")),
            }
        )

    def until(self, minutes: float, work: Callable[[float], None] = lambda _: None) -> None:
        """Sample for so long; between samples do `work`, which gets the seconds of the phase."""
        begin = next_sample = time.monotonic()
        while (now := time.monotonic()) - begin < 60 * minutes:
            if now >= next_sample:
                self.sample()
                next_sample += SAMPLE_SECONDS
            work(now - begin)
            time.sleep(0.25)
        self.sample()

    def ask(self) -> None:
        """Have the daemon write what it holds; that takes memory, so no sample follows soon."""
        self.folder.joinpath("out/ask").touch()
        answer = self.folder / "out/held"
        for _ in range(600):
            if answer.exists() and (text := answer.read_text()).endswith("}"):
                self.held[self.phase] = json.loads(text)
                answer.unlink()
                return
            time.sleep(0.1)


def burst(folder: str) -> subprocess.Popen[bytes]:
    """Start one burst of the load, which gives way to whatever else runs.

    With CAP_SYS_ADMIN madvise would try MADV_HWPOISON on its own pages.
    """
    stress = ["stress-ng", "--quiet", "--oomable", "--temp-path", folder, *_SMALL]
    stress += ["--timeout", f"{BURST_SECONDS}s", *(f"--{name}=1" for name in LOAD)]
    limits = ["setpriv", "--bounding-set=-sys_admin", "prlimit", f"--data={256 << 20}"]
    command = [*limits, *stress]
    migrate = " ".join([*WORKLOAD, str(PAGES_MOVED)])
    return subprocess.Popen(
        ["nice", "-n", "10", "sh", "-c", f"{' '.join(command)} && {migrate}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def load(
    recorder: WindowRecorder, url: str, folder: str, bursts: Counter[str]
) -> Callable[[float], None]:
    """Return what keeps up the load, to be called again and again with the seconds since then."""
    keys = [variant(line, n) for line in HOLDING for n in range(100)]
    for n, key in enumerate(keys):
        recorder.cast.update(n.to_bytes(4, "little"), key)
    documents = [f"/docs/{path.relative_to(ROOT / 'docs')}" for path in ROOT.glob("docs/**/*.md")]
    state = {"recorded": 0.0, "burst": 0.0, "pages": 60.0}
    running = list[subprocess.Popen[bytes]]()

    def work(seconds: float) -> None:
        while state["recorded"] < WINDOWS_A_SECOND * seconds:
            recorder.many.run(int(state["recorded"]), len(keys))
            state["recorded"] += A_RUN
        if seconds >= state["burst"] and all(one.poll() is not None for one in running):
            bursts.update("failed" if one.returncode else "done" for one in running)
            running[:] = [burst(folder)]
            state["burst"] = seconds + CYCLE_SECONDS
        if seconds >= state["pages"]:
            state["pages"] += PAGES_SECONDS
            for page in (*_PAGES, *documents):
                fetch(url + page)

    return work


def violate(recorder: WindowRecorder) -> Callable[[float], None]:
    """Return what records a violating window with a signature of its own at each call."""
    keys = iter([variant(line, n) for n in range(SIGNATURES) for line in VIOLATING.values()])

    def work(_seconds: float) -> None:
        for key in islice(keys, VIOLATIONS_A_STEP):
            recorder.record(key)

    return work


def run(out: Path, idle: float = 5, loaded: float = 60, finding: float = 3) -> None:
    """Measure a daemon of this machine, and write the samples."""
    with tempfile.TemporaryDirectory(prefix="rmapd-memory-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.chown(folder, daemons_user().pw_uid, daemons_user().pw_gid)
        make(folder / "probes")
        for part in ("out", "load"):
            (folder / part).mkdir()
            (folder / part).chmod(0o777)
        environment = {
            "RMAPD_STORE": f"{folder}/store.db",
            "RMAPD_LOCK_FILE": f"{folder}/lock",
            "RMAPD_FIDELITY": "full",
        }
        command = [sys.executable, "-m", "tests.support.watched", name]
        with daemon(command=command, env=environment) as (process, url):
            for stream in (process.stdout, process.stderr):
                threading.Thread(target=_drain, args=(stream,), daemon=True).start()
            watch = Watch(process.pid, url, folder)
            with contextlib.closing(WindowRecorder.find()) as recorder, written(watch, out):
                watch.until(idle)
                watch.phase = "load"
                watch.until(loaded, load(recorder, url, f"{folder}/load", watch.bursts))
                watch.ask()
                watch.phase = "findings"
                watch.until(finding, violate(recorder))
                watch.ask()


@contextlib.contextmanager
def written(watch: Watch, out: Path) -> Iterator[None]:
    """Write the samples at the end, however that comes."""
    try:
        yield
    finally:
        found = {"rows": watch.rows, "held": watch.held, "bursts": watch.bursts}
        out.write_text(json.dumps(found))


def table(samples: Row) -> str:
    """Return what each phase needed, and what is held at the end of it."""
    lines = [
        "| MB | resident, checker | at most | anonymous | shares counted (PSS), both | supervisor "
        "| log | maps | descriptors | series | CPU, % of one core |",
        f"|{'-|' * 11}",
    ]
    for phase in dict.fromkeys(row["phase"] for row in samples["rows"]):
        rows = [row for row in samples["rows"] if row["phase"] == phase]
        last, seconds = rows[-1], rows[-1]["seconds"] - rows[0]["seconds"]
        spent = last["checker"]["cpu"] - rows[0]["checker"]["cpu"]
        sizes = [
            last["checker"]["Rss"],
            last["checker"]["peak"],
            last["checker"]["Anonymous"],
            last["checker"]["Pss"] + last["supervisor"]["Pss"],
            last["supervisor"]["Rss"],
            max(row["log"] for row in rows),
            last["maps"],
        ]
        counts = [max(row["checker"]["fds"] for row in rows), last["series"]]
        cells = [phase, *(f"{size / 1e6:.1f}" for size in sizes), *map(str, counts)]
        lines.append(f"| {' | '.join(cells)} | {100 * spent / max(seconds, 1):.2f} |")
    for phase, items in samples["held"].items():
        known = {name: count for name, count in items.items() if not name.endswith(_BUFFERS)}
        lines += ["", f"{phase}: items in containers", *map(str, list(known.items())[:40])]
    return "\n".join([*lines, "", f"bursts of the load: {samples['bursts']}"])


def plot(samples: Row) -> str:
    """Return an SVG file of sizes over time."""
    rows = samples["rows"]
    minutes = [row["seconds"] / 60 for row in rows]

    def paint(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for name, process, key, colour in (
            ("checker, resident", "checker", "Rss", "blue"),
            ("checker, anonymous", "checker", "Anonymous", "good"),
            ("supervisor, resident", "supervisor", "Rss", "warn"),
        ):
            sizes = [row[process][key] / 1e6 for row in rows]
            above.plot(minutes, sizes, color=COLOUR[colour], linewidth=1.4, label=name)
        below.plot(minutes, [row["log"] / 1e6 for row in rows], color=COLOUR["bad"], linewidth=1.4)
        for phase in dict.fromkeys(row["phase"] for row in rows):
            begin = next(at for at, row in zip(minutes, rows, strict=True) if row["phase"] == phase)
            for axes in (above, below):
                axes.axvline(begin, color=COLOUR["muted"], linewidth=0.7, linestyle=":")
            above.annotate(f" {phase}", (begin, 1.0), xycoords=("data", "axes fraction"))
        above.set(ylim=(0, 1.1 * above.get_ylim()[1]), ylabel="MB")
        above.legend(loc="lower right")
        below.set(ylim=(0, None), xlim=(0, None), ylabel="MB", xlabel="minutes")
        below.set_title("log of the checkpoint", loc="left", fontsize=9, color=COLOUR["muted"])
        for axes in (above, below):
            plain(axes)

    drawn = draw("memory", 660, 380, "memory of the daemon over time", paint)
    return drawn.replace(">", f' width="660" height="380">{_STYLE}', 1) + "\n"


def _drain(stream: Any) -> None:
    for _ in stream:
        pass


def main(*arguments: str) -> None:
    match arguments:
        case ["run", out, *minutes]:
            run(Path(out), *map(float, minutes))
        case ["table", samples]:
            print(table(json.loads(Path(samples).read_text())))
        case ["plot", samples, out]:
            Path(out).write_text(plot(json.loads(Path(samples).read_text())))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
