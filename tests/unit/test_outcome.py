"""Every way to end has its exit code, and a defect its traceback: systemd starts the daemon again unless it would fail in the same way."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from click.testing import CliRunner, Result

from tests.support.native import ROOT
from tests.support.reports import written
from tests.support.snapshots import snapshot
from tracer import atomic_file
from tracer import config as configuration
from tracer.attach import attach_process, compiler, loader, resolver
from tracer.attach.plan import AttachMethod, Hook, HookState, PlannedHook
from tracer.bpf import programs
from tracer.cli import main
from tracer.config import Config
from tracer.daemon.run import _announce, _reload
from tracer.errors import Defect, NotCheckable, RmapdError, Temporary
from tracer.kernel.running import Kernel
from tracer.process.lock_and_signals import only_one
from tracer.web import Application, Server
from tracer.web.server import listening

RMAPD = [sys.executable, "-m", "tracer"]


def ending(monkeypatch: pytest.MonkeyPatch, how: Callable[[], object]) -> Result:
    """A command in which this happens."""
    monkeypatch.setattr(configuration, "in_force", lambda _: how() or "")
    return CliRunner().invoke(main, ["check-config"])


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "traced"),
    [
        (RmapdError("wrong"), 2, False),
        (NotCheckable("M1 is required"), 4, False),
        (Temporary("not now"), 75, False),
        (Defect("told by another process, which logged it"), 70, False),
        (KeyboardInterrupt(), 130, False),
        (ZeroDivisionError("division"), 70, True),
        (KeyError("taken"), 70, True),
        (RecursionError(), 70, True),
        (BrokenPipeError(errno.EPIPE, "a socket, not stdout"), 70, True),
        (OSError(errno.EIO, "Input/output error"), 70, True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 75, True),
        (OSError(errno.EMFILE, "Too many open files"), 75, True),
        (MemoryError(), 75, True),
    ],
)
def test_an_exception_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, traced: bool
) -> None:
    monkeypatch.delenv("RMAPD_DEBUG", raising=False)
    done = ending(monkeypatch, raising(error))
    assert done.exit_code == code
    assert ("Traceback (most recent call last)" in done.stderr) == traced
    assert ("in fail" in done.stderr) == traced
    assert not done.stderr.startswith("rmapd: unexpected")


def test_a_thread_that_fails_is_a_defect_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def threaded() -> None:
        thread = threading.Thread(target=raising(ValueError("a page")), name="rmapd-http")
        thread.start()
        thread.join()

    before, asked = signal.getsignal(signal.SIGTERM), list[int]()
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        done = ending(monkeypatch, threaded)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.exit_code == 70
    assert "ended its thread rmapd-http" in done.stderr
    assert "ValueError: a page" in done.stderr
    assert asked == [signal.SIGTERM], "the main thread is asked to end in good order"
    assert ending(monkeypatch, str).exit_code == 0, "the next is not blamed"


def test_a_server_whose_thread_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_server: Server) -> None:
        raise LookupError("no such room")

    monkeypatch.setattr(Server, "_accept", broken)

    def serving() -> None:
        with Server(("127.0.0.1", 0), Application(cast(Any, SimpleNamespace(points=())))) as server:
            server._thread.join(10)

    done = ending(monkeypatch, serving)
    assert (done.exit_code, "LookupError: no such room" in done.stderr) == (70, True), done.stderr
    assert done.stderr.count("Traceback") == 1, "and to leave it is no second defect"


def test_the_unit_is_not_started_again_after_2_and_4_only() -> None:
    unit = (ROOT / "systemd/rmapd.service").read_text()
    (prevented,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.M)
    assert {int(code) for code in prevented.split()} == {
        RmapdError.exit_code,
        NotCheckable.exit_code,
    }
    assert re.search(r"^Restart=on-failure$", unit, re.M)


def test_a_busy_port_may_pass() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Temporary, match="cannot listen on 127"):
            listening(taken.getsockname())
    with pytest.raises(RmapdError) as caught:
        listening(("256.0.0.1", 0))
    assert caught.value.exit_code in (2, 75)


def test_another_rmapd_may_pass_and_its_file_names_nothing_else(tmp_path: Path) -> None:
    with only_one(tmp_path / "lock"):
        with pytest.raises(Temporary, match=f"pid {os.getpid()}"):
            only_one(tmp_path / "lock")
        (tmp_path / "lock").write_text("1; rm -rf /\x1b")
        with pytest.raises(Temporary, match="pid unknown") as caught:
            only_one(tmp_path / "lock")
    assert "rm -rf" not in str(caught.value)
    os.mkfifo(tmp_path / "fifo")
    refused = "cannot write the lock file"
    for path, why in (
        (tmp_path, refused),
        (tmp_path / "fifo", "is no lock file"),
        (tmp_path / "none/none/lock", refused),
        (Path("/dev/full"), "is no lock file"),
    ):
        with pytest.raises(RmapdError, match=why):
            only_one(path)


ORDER = attach_process.AttachOrder([Path()], None, {}, {}, False)


@pytest.mark.parametrize(
    ("how", "kind", "why"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), Temporary, "as where memory is short"),
        (lambda: os.kill(os.getpid(), signal.SIGSYS), Defect, "it died of SIGSYS"),
        (lambda: os._exit(3), Defect, "it ended with 3"),
    ],
)
def test_how_the_process_that_attaches_died(
    monkeypatch: pytest.MonkeyPatch, how: Callable[[], None], kind: type[RmapdError], why: str
) -> None:
    monkeypatch.setattr(attach_process, "_serve", lambda *_: how())
    with pytest.raises(kind, match="the process that attaches gave no answer") as caught:
        attach_process.attach(cast(Kernel, None), ORDER)
    assert (type(caught.value), why in caught.value.why) == (kind, True), caught.value.why


@pytest.mark.parametrize(
    ("error", "kind", "traced"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Temporary, False),
        (MemoryError(), Temporary, False),
        (TypeError("a defect"), Defect, True),
        (RmapdError("cannot import bcc"), RmapdError, False),
        (NotCheckable("x"), NotCheckable, False),
    ],
)
def test_what_the_process_that_attaches_says(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    kind: type[RmapdError],
    traced: bool,
) -> None:
    def make(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(resolver, "make_plan", make)
    logging.getLogger("rmapd").addHandler(handler := logging.StreamHandler())
    try:
        with pytest.raises(kind) as caught:
            attach_process.attach(cast(Kernel, None), ORDER)
    finally:
        logging.getLogger("rmapd").removeHandler(handler)
    assert type(caught.value) is kind
    assert ("Traceback" in capfd.readouterr().err) == traced


def test_a_process_that_cannot_be_started_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "fork", raising(OSError(errno.EAGAIN, "Resource temporarily unavailable"))
    )
    with pytest.raises(Temporary, match="cannot start the process that attaches"):
        attach_process.attach(cast(Kernel, None), ORDER)


def test_a_program_for_which_there_is_no_memory_is_not_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a coverage lost by chance, that the next start would have."""
    hook = PlannedHook(
        "vma",
        Hook("vma_expand", [], ""),
        HookState.READY,
        (AttachMethod("kprobe", "vma_expand", (cast(Any, None),)),),
    )
    maker = cast(
        Any,
        SimpleNamespace(load=lambda _: raising(OSError(errno.ENOMEM, "Cannot allocate memory"))()),
    )
    monkeypatch.setattr(loader, "AttachedProgram", lambda made, *_: made)
    hook = PlannedHook(
        "vma",
        hook.hook,
        HookState.READY,
        (AttachMethod("kprobe", "vma_expand", (cast(Any, SimpleNamespace(how="", symbol="")),)),),
    )
    with pytest.raises(
        Temporary, match="cannot load the programs of vma_expand: Cannot allocate memory"
    ):
        loader.attach_hook(maker, hook)
    refused = cast(
        Any,
        SimpleNamespace(load=lambda _: raising(OSError(errno.EPERM, "Operation not permitted"))()),
    )
    failed, points = loader.attach_hook(refused, hook)
    assert (failed.state, failed.tried, points) == (HookState.DENIED, True, [])


def test_the_verifier_is_not_asked_for_its_words_where_there_is_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[object]()

    def load(*args: object) -> NoReturn:
        asked.append(args)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(programs, "_load", load)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        programs.load_program("x", "raw_tp", b"")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("script", "kind", "why"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            Temporary,
            "as where memory is short",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Defect, "SIGSEGV"),
        ("raise ImportError('libbcc')", RmapdError, "libbcc"),
        (
            "import sys\nclass BPF:\n def __init__(self, **_):\n  print('could not open bpf map: ledger, error: Cannot allocate memory',"
            " file=sys.stderr)\n  raise Exception('Failed to compile BPF module')\n",
            Temporary,
            "Cannot allocate memory",
        ),
    ],
)
def test_how_the_compiler_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, kind: type[RmapdError], why: str
) -> None:
    (tmp_path / "bcc.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RmapdError) as caught:
        compiler.compile_in_child("", [], [], str(tmp_path), 1)
    assert (type(caught.value), why in caught.value.why) == (kind, True), caught.value


def test_what_this_kernel_cannot_have_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    def absent(name: str, reason: str, *, tried: bool = False) -> PlannedHook:
        return PlannedHook(
            "vma",
            Hook(name, [], ""),
            HookState.DENIED if tried else HookState.MISSING,
            reason=reason,
            tried=tried,
        )

    hooks = (
        *(absent(f"f{n}", "built without CONFIG_KPROBES") for n in range(5)),
        absent("g", "no symbol g"),
    )
    caplog.set_level(logging.INFO, "rmapd")
    _announce(
        cast(Any, None),
        snapshot(hooks=(*hooks, absent("h", "the verifier refused it", tried=True))),
        "http://x",
    )
    said = [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.getMessage().startswith("hook")
    ]
    assert said == [
        ("INFO", "hooks not in this kernel: f0, f1, f2, f3, f4 (built without CONFIG_KPROBES)"),
        ("INFO", "hook not in this kernel: g (no symbol g)"),
        ("WARNING", "hook could not be attached: h (the verifier refused it)"),
    ]


def test_a_configuration_that_is_refused_at_reload_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _reload(
        cast(Any, SimpleNamespace(change=None)),
        cast(
            Callable[[], Config],
            raising(RmapdError("the configuration x is wrong", why="a\nb", hint="y")),
        ),
    )
    assert (
        caplog.records[-1].getMessage()
        == "the configuration stays as it was: the configuration x is wrong: a; b; try: y"
    )


FULL = Path("/dev/full")


def run(
    *args: str | Path, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE, **more: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RMAPD, *map(str, args)], stdout=stdout, stderr=stderr, text=True, check=False, **more
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_is_full_is_said_so(tmp_path: Path, unbuffered: str) -> None:
    path = written(tmp_path / "r.json")
    each: list[list[str | Path]] = [
        ["--help"],
        ["--version"],
        ["explain", "L1"],
        ["explain", "L1-", "--report", path],
        ["check-config"],
        ["check-config", "--example"],
        ["report", "--from", path],
        ["diff", path, path],
    ]
    for args in each:
        with FULL.open("w") as full:
            done = run(*args, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
        assert done.returncode == 75, (args, done.stderr)
        assert (
            done.stderr.splitlines()[0]
            == "rmapd: cannot write to standard output: No space left on device"
        ), args
        assert len(done.stderr.splitlines()) == 2, "and nothing at Python's end"


def test_a_reader_that_has_enough_is_no_error_and_a_full_stderr_changes_no_code(
    tmp_path: Path,
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("report", "--from", written(tmp_path / "r.json"), stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    with FULL.open("w") as full:
        assert run("explain", "L1", stderr=full).returncode == 0
        assert run("explain", "nonsense", stderr=full).returncode == 2


STARTED = "import sys; print('x', flush=True); from tracer.__main__ import main; sys.argv = ['rmapd', 'explain', 'L1']; main()"


def test_ctrl_c_while_it_starts_has_no_traceback() -> None:
    """From the first line of rmapd's own on; before it Python itself starts."""
    codes = set()
    for moment in range(24):
        with subprocess.Popen(
            [sys.executable, "-c", STARTED],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(0.004 + moment * 0.005)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        assert said == "", (moment, said)
        codes.add(process.returncode)
    assert codes <= {-signal.SIGINT, 130, 0}
    assert -signal.SIGINT in codes


def test_what_took_a_minute_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder was there at the start and is gone at the end."""
    (tmp_path / "gone").mkdir()
    path = tmp_path / "gone/r.json"
    atomic_file.writable(path, "the report")
    shutil.rmtree(path.parent)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for target in (path, FULL):
        with pytest.raises(RmapdError, match=f"cannot write the report {target}") as caught:
            atomic_file.write(target, "what was recorded", "the report")
        kept = Path(caught.value.hint.removeprefix("it is kept in "))
        assert kept.read_text() == "what was recorded"
        assert kept.stat().st_mode & 0o077 == 0
    assert caught.value.exit_code == 75
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RmapdError):
        atomic_file.write(path, "made again in no time", "the report", rescue=False)
    assert sorted(tmp_path.iterdir()) == before


def test_half_of_it_is_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses to let any file grow: nothing is left in the folders that were tried."""
    script = "from pathlib import Path; from tracer import atomic_file; atomic_file.write(Path('r.md'), 'n' * 100_000, 'the report')"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); {script}"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", limited],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert "cannot write the report r.md" in done.stderr
    assert "try: a folder that exists" in done.stderr, "and not where it is kept"
    assert not list(tmp_path.iterdir())


def test_a_pipe_that_nobody_reads_is_refused_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo.md")
    for write in (atomic_file.writable, lambda path, what: atomic_file.write(path, "x", what)):
        with pytest.raises(RmapdError, match="nobody reads from this pipe"):
            write(tmp_path / "fifo.md", "the report")
    monkeypatch.setattr(atomic_file, "_PATIENCE_SECONDS", 0.2)
    reader = os.open(tmp_path / "fifo.md", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(RmapdError, match="nothing was taken"):
        atomic_file.write(tmp_path / "fifo.md", "x" * (1 << 22), "the report")
    os.close(reader)


def test_a_pipe_that_somebody_reads_gets_all(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.md")
    taken = list[str]()
    reader = threading.Thread(target=lambda: taken.append((tmp_path / "fifo.md").read_text()))
    reader.start()
    time.sleep(0.1)
    atomic_file.write(tmp_path / "fifo.md", "x" * 300_000, "the report")
    reader.join(10)
    assert taken == ["x" * 300_000]
