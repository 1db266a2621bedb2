"""Each error has its exit code, by which systemd restarts or does not; a defect has a traceback."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from click.testing import CliRunner, Result

from tests.support.clock import SAFETY_SECONDS, until
from tests.support.native import ROOT
from tests.support.reports import written
from tests.support.terminal import Terminal
from tracer import atomic_file, logs
from tracer import config as configuration
from tracer.attach import attach_process, compiler, loader, resolver
from tracer.attach.plan import AttachMethod, Hook, HookState, PlannedHook
from tracer.bpf import programs
from tracer.cli import main
from tracer.errors import Defect, NotCheckable, RmapdError, Temporary
from tracer.kernel.running import Kernel
from tracer.process.lock_and_signals import hold_lock_file
from tracer.web import Application, Server
from tracer.web.server import listening

RMAPD = [sys.executable, "-m", "tracer"]


def run_raising(monkeypatch: pytest.MonkeyPatch, how: Callable[[], object]) -> Result:
    """Run a command whose body calls this."""
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
        (Defect("from another process, which logged it"), 70, False),
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
def test_each_exception_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, traced: bool
) -> None:
    monkeypatch.delenv("RMAPD_DEBUG", raising=False)
    done = run_raising(monkeypatch, raising(error))
    assert done.exit_code == code
    assert ("Traceback (most recent call last)" in done.stderr) == traced
    assert ("in fail" in done.stderr) == traced
    assert not done.stderr.startswith("rmapd: unexpected")


def test_failed_thread_makes_the_command_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def threaded() -> None:
        thread = threading.Thread(target=raising(ValueError("a page")), name="rmapd-http")
        thread.start()
        thread.join()

    before, asked = signal.getsignal(signal.SIGTERM), list[int]()
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        done = run_raising(monkeypatch, threaded)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.exit_code == 70
    assert "ended its thread rmapd-http" in done.stderr
    assert "ValueError: a page" in done.stderr
    assert asked == [signal.SIGTERM], "the main thread is asked to end in good order"
    assert run_raising(monkeypatch, str).exit_code == 0, "the next command is not affected"


def test_failed_server_thread_makes_the_command_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_server: Server) -> None:
        raise LookupError("no such page")

    monkeypatch.setattr(Server, "_accept", broken)

    def serving() -> None:
        with Server(("127.0.0.1", 0), Application(cast(Any, SimpleNamespace(points=())))):
            until(lambda: "rmapd-http" not in {one.name for one in threading.enumerate()})

    done = run_raising(monkeypatch, serving)
    assert (done.exit_code, "LookupError: no such page" in done.stderr) == (70, True), done.stderr
    assert done.stderr.count("Traceback") == 1, "closing the server is no second defect"


def test_unit_is_restarted_except_after_exit_codes_2_and_4() -> None:
    unit = (ROOT / "systemd/rmapd.service").read_text()
    (prevented,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.M)
    assert {int(code) for code in prevented.split()} == {
        RmapdError.exit_code,
        NotCheckable.exit_code,
    }
    assert re.search(r"^Restart=on-failure$", unit, re.M)


def test_busy_port_is_a_temporary_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Temporary, match="cannot listen on 127"):
            listening(taken.getsockname())
    with pytest.raises(RmapdError) as caught:
        listening(("256.0.0.1", 0))
    assert caught.value.exit_code in (2, 75)


def test_held_lock_is_temporary_and_its_error_shows_digits_only(tmp_path: Path) -> None:
    with hold_lock_file(tmp_path / "lock"):
        with pytest.raises(Temporary, match=f"pid {os.getpid()}"):
            hold_lock_file(tmp_path / "lock")
        (tmp_path / "lock").write_text("1; rm -rf /\x1b")
        with pytest.raises(Temporary, match="pid unknown") as caught:
            hold_lock_file(tmp_path / "lock")
    assert "rm -rf" not in str(caught.value)
    os.mkfifo(tmp_path / "fifo")
    refused = "cannot write the lock file"
    for path, why in (
        (tmp_path, refused),
        (tmp_path / "fifo", "is not a lock file"),
        (tmp_path / "none/none/lock", refused),
        (Path("/dev/full"), "is not a lock file"),
    ):
        with pytest.raises(RmapdError, match=why):
            hold_lock_file(path)


ORDER = attach_process.AttachOrder([Path()], None, {}, {}, False)


@pytest.mark.parametrize(
    ("how", "kind", "why"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), Temporary, "as where memory is short"),
        (lambda: os.kill(os.getpid(), signal.SIGSYS), Defect, "it died of SIGSYS"),
        (lambda: os._exit(3), Defect, "it ended with 3"),
    ],
)
def test_death_of_the_attach_process_is_classified(
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
def test_error_of_the_attach_process_keeps_its_class(
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


def test_failed_fork_is_a_temporary_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "fork", raising(OSError(errno.EAGAIN, "Resource temporarily unavailable"))
    )
    with pytest.raises(Temporary, match="cannot start the process that attaches"):
        attach_process.attach(cast(Kernel, None), ORDER)


def test_program_that_lacks_memory_is_an_error_and_not_lost_coverage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next start would have that coverage."""
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


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_load_without_memory_is_not_repeated_for_a_verifier_log(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    asked = list[object]()

    def load(*args: object) -> NoReturn:
        asked.append(args)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(programs, "_load", load)
    with pytest.raises(OSError, match=os.strerror(number)):
        programs.load_program("x", "raw_tp", b"")
    assert len(asked) == 1


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR])
def test_load_that_a_signal_interrupts_is_repeated(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    errors = [number, number]

    def load(*_: object) -> int:
        if errors:
            raise OSError(errors.pop(), "a signal is pending")
        return 7

    monkeypatch.setattr(programs, "_load", load)
    assert programs.load_program("x", "raw_tp", b"").fd == 7


@pytest.mark.parametrize(
    ("script", "kind", "why"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            Temporary,
            "as where memory is short",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Defect, "SIGSEGV"),
        ("raise ImportError('libbcc')", compiler.NoCompiler, "libbcc"),
        (
            "import sys\nclass BPF:\n def __init__(self, **_):\n"
            "  print('could not open bpf map: ledger, error: Cannot allocate memory',"
            " file=sys.stderr)\n  raise Exception('Failed to compile BPF module')\n",
            Temporary,
            "Cannot allocate memory",
        ),
    ],
)
def test_end_of_the_compiler_process_is_classified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, kind: type[RmapdError], why: str
) -> None:
    (tmp_path / "bcc.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RmapdError) as caught:
        compiler.compile_in_child("", [], [], str(tmp_path), 1)
    assert (type(caught.value), why in caught.value.why) == (kind, True), caught.value


FULL = Path("/dev/full")


def run(
    *args: str | Path, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE, **more: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RMAPD, *map(str, args)], stdout=stdout, stderr=stderr, text=True, check=False, **more
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_standard_output_is_a_temporary_error(tmp_path: Path, unbuffered: str) -> None:
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
        assert len(done.stderr.splitlines()) == 2, "nothing more at the exit of Python"


def test_closed_pipe_is_no_error_and_full_stderr_changes_no_exit_code(
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


STARTED = """
import os, signal, sys
from tracer.__main__ import main
left = int(sys.argv[1])
def count(event, _):
    global left
    if event == "import":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.addaudithook(count)
sys.argv = ["rmapd", "explain", "L1"]
try:
    main()
finally:
    os.write(1, f"\\n{left}".encode())
"""
"""Sends itself SIGINT at the given import; the last line is how many imports are left."""


def test_ctrl_c_during_start_prints_no_traceback() -> None:
    """From rmapd's first line on; before it, Python itself starts."""

    def interrupted(at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", STARTED, str(at)], capture_output=True, text=True, check=False
        )

    most = 1 << 20
    imports = most - int(interrupted(most).stdout.rpartition("\n")[2])
    assert imports > 100
    codes = set()
    for moment in range(24):
        done = interrupted(1 + moment * imports // 24)
        assert done.stderr == "", (moment, done.stderr)
        codes.add(done.returncode)
    assert codes <= {-signal.SIGINT, 130, 0}
    assert -signal.SIGINT in codes


def test_report_that_cannot_be_written_is_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder exists at the start and is gone at the end."""
    (tmp_path / "gone").mkdir()
    path = tmp_path / "gone/r.json"
    atomic_file.writable(path, "the report")
    shutil.rmtree(path.parent)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for target in (path, FULL):
        with pytest.raises(RmapdError, match=f"cannot write the report {target}") as caught:
            atomic_file.write(target, "what was recorded", "the report")
        kept = Path(caught.value.hint.removeprefix("it is saved in "))
        assert kept.read_text() == "what was recorded"
        assert kept.stat().st_mode & 0o077 == 0
    assert caught.value.exit_code == 75
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RmapdError):
        atomic_file.write(path, "made again in no time", "the report", rescue=False)
    assert sorted(tmp_path.iterdir()) == before


def test_incomplete_copy_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets no file grow: nothing is left in the folders that were tried."""
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from pathlib import Path; from tracer import atomic_file;"
        "atomic_file.write(Path('r.md'), 'n' * 100_000, 'the report')"
    )
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
    assert "try: a writable folder that exists" in done.stderr, "the error names no copy"
    assert not list(tmp_path.iterdir())


def test_pipe_without_a_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo.md")
    for write in (atomic_file.writable, lambda path, what: atomic_file.write(path, "x", what)):
        with pytest.raises(RmapdError, match="no process reads this pipe"):
            write(tmp_path / "fifo.md", "the report")
    monkeypatch.setattr(atomic_file, "_PATIENCE_SECONDS", 0.2)
    reader = os.open(tmp_path / "fifo.md", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(RmapdError, match="the reader took nothing"):
        atomic_file.write(tmp_path / "fifo.md", "x" * (1 << 22), "the report")
    os.close(reader)


def test_pipe_with_a_reader_gets_everything(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.md")
    taken = list[str]()
    end = os.open(tmp_path / "fifo.md", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(end, True)

    def read() -> None:
        with os.fdopen(end) as file:
            assert select.select([file], [], [], SAFETY_SECONDS)[0], "until something is written"
            taken.append(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    atomic_file.write(tmp_path / "fifo.md", "x" * 300_000, "the report")
    reader.join()
    assert taken == ["x" * 300_000]


def test_size_of_the_terminal_is_known_after_stdout_is_replaced() -> None:
    """shutil asks sys.__stdout__, which is detached then."""
    code = (
        "import shutil; from tracer import outcome; outcome.install_stdout();"
        " print(*shutil.get_terminal_size())"
    )
    with Terminal([sys.executable, "-c", code], (111, 33)) as terminal:
        terminal.shows("111 33")


def test_log_is_held_back_while_a_program_draws(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("rmapd")
    shown = list[str]()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    root, handler = logging.getLogger(), Handler()
    root.addHandler(handler)
    try:
        with contextlib.suppress(RmapdError), logs.held_back():
            for number in range(2000):
                log.warning("line %d", number)
            assert not shown
            raise RmapdError("the program ends with an error")
        assert shown == [f"line {number}" for number in range(1000, 2000)]
        log.warning("after it")
        assert shown[-1] == "after it"
    finally:
        root.removeHandler(handler)
    assert "after it" in caplog.text


def test_reader_that_closes_its_pipe_changes_no_exit_code() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*RMAPD, "status", "--url", "http://127.0.0.1:1", "--format", "json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (5, ""), "nothing listens there"
