"""The report of doctor: a verdict first, hooks by reason, 80 columns, colours where wanted."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.busy import NO_HOOKS, tracepoints_only, well
from tests.unit.results.test_hook_groups import absent, hook
from tests.unit.test_screen import terminal
from tracer import cli_doctor, screen
from tracer.attach.plan import HookState
from tracer.cli import main
from tracer.daemon import doctor_text, installation
from tracer.daemon.doctor import KernelReport, hooks_json
from tracer.daemon.doctor_text import Page, verdict
from tracer.daemon.installation import NOTE, OK, WRONG, Check
from tracer.errors import RmapdError
from tracer.invariants.catalogue import discover
from tracer.results.hook_groups import group
from tracer.results.snapshot import Snapshot

LONG = "__vma_interval_tree_insert_after_with_an_even_longer_name_of_70_letters"
CHECKS = [
    Check("bcc", OK, "installed"),
    Check("tracefs", NOTE, "not mounted " * 12, "mount -t tracefs nodev /sys/kernel/tracing"),
]


EVERY, HOOKS = len(discover()), len(tracepoints_only().hooks)


def report(s: Snapshot) -> KernelReport:
    """What doctor would find where a session has this snapshot."""
    found: dict[str, Any] = {
        "kernel": s.kernel,
        "capabilities": {"BTF": "yes, 126,611 types", "fentry": NO_HOOKS, "levels": "4"},
        "hooks": hooks_json(s.hooks),
        "invariants": {
            name: {"title": one.title, "coverage": s.coverage[name][0].value, "reason": reason}
            for name, one in s.invariants.items()
            for reason in [s.coverage[name][1]]
        },
    }
    return KernelReport(found, group(s.hooks, s.invariants))


def with_hooks(*more: Any) -> KernelReport:
    s = tracepoints_only()
    return report(Snapshot(**{**vars(s), "hooks": (*s.hooks, *more)}))


def nothing() -> KernelReport:
    made = report(tracepoints_only())
    for one in made.found["invariants"].values():
        one["coverage"] = "none"
    return made


@pytest.mark.parametrize(
    ("made", "checks", "text", "style"),
    [
        (
            report(well()),
            CHECKS[:1],
            f"All {EVERY} invariants can be checked in full on 6.12.95-amd64. The installation is"
            " complete.",
            "green",
        ),
        (
            report(tracepoints_only()),
            CHECKS,
            f"14 of {EVERY} invariants can be checked on 6.12.95-amd64: 4 in full, 10 in part. The"
            " installation is complete, with 1 note.",
            "yellow",
        ),
        (
            nothing(),
            CHECKS[:1],
            "Nothing can be checked on 6.12.95-amd64. The installation is complete.",
            "red",
        ),
        (
            report(well()),
            [*CHECKS, Check("BTF", WRONG, "none"), Check("bcc", WRONG, "none")],
            f"All {EVERY} invariants can be checked in full on 6.12.95-amd64. The installation has"
            " something wrong: BTF and bcc; 1 note.",
            "red",
        ),
    ],
    ids=["all", "part", "nothing", "wrong"],
)
def test_verdict_is_a_sentence_on_the_kernel_and_one_on_the_installation(
    made: KernelReport, checks: list[Check], text: str, style: str
) -> None:
    assert verdict(checks, made) == doctor_text.Verdict(text, style)
    first = Page(80).text(checks, made).split("\n\n")[0]
    assert " ".join(first.split()) == text


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [80, 60, 100])
def test_lines_fit_whatever_the_names(width: int, verbose: bool) -> None:
    """A hook's name of -v stays whole, and so may be longer than a narrow terminal."""
    made = with_hooks(hook(LONG[:60] if width > 60 else LONG[:40], HookState.DENIED, NO_HOOKS))
    text = Page(width).text(CHECKS, made, verbose=verbose)
    assert max(map(len, text.splitlines())) <= width


def test_columns_are_aligned_also_behind_a_long_name() -> None:
    made = with_hooks(hook(LONG[:45], HookState.ATTACHED))
    lines = Page(80).text(CHECKS, made, verbose=True).splitlines()
    attached = [line for line in lines if line.startswith("    attached")]
    assert len(attached) == 22
    assert len({line.index(line.split()[1]) for line in attached}) == 1
    hows = {line.rindex(line.split()[2]) for line in attached}
    assert len(hows) == 1, "the column of attach methods"


def test_hooks_are_grouped_by_reason() -> None:
    made = with_hooks(absent("vma_merge"), hook("h", HookState.DENIED, "x", tried=True))
    text = Page(80).text(CHECKS, made)
    section = text.partition(f"21 of {HOOKS + 2} hooks are attached\n")[2].partition("\n\n")[0]
    assert section.splitlines() == [
        f"  {HOOKS - 21} are not: fentry programs are refused (EPERM: Operation not permitted),"
        " this",
        "    kernel is built without CONFIG_KPROBES",
        "  1 could not be attached: h (x)",
        "  1 function does not exist in this kernel",
        "  rmapd doctor -v lists every hook",
    ]


def test_verbose_lists_every_hook_with_state_and_exact_reason() -> None:
    made = with_hooks(absent("vma_merge", NO_HOOKS))
    text = Page(80).text(CHECKS, made, verbose=True)
    assert "lists every hook" not in text
    lines = text.splitlines()
    for name, one in made.found["hooks"].items():
        assert any(line.split()[:2] == [one["state"], name] for line in lines), name
        assert one["reason"] in " ".join(text.split())
    short = Page(80).text(CHECKS, made)
    assert len(short.splitlines()) < len(lines) - 60


def test_reason_that_comes_again_refers_to_the_first_invariant() -> None:
    made = report(well())
    for name in ("M1", "M4", "L5"):
        made.found["invariants"][name] |= {"coverage": "partial", "reason": "the same"}
    text = Page(80).text(CHECKS, made)
    assert text.count("the same") == 1
    assert text.count("as M1") == 2


def test_hint_is_below_what_is_not_ok_and_only_there() -> None:
    text = Page(80).text([Check("bcc", OK, "installed", "no"), *CHECKS[1:]], report(well()))
    assert "try: mount -t tracefs nodev /sys/kernel/tracing" in text
    assert "try: no" not in text


def test_colours_change_nothing_but_escape_sequences() -> None:
    made = report(tracepoints_only())
    plain, coloured = (Page(80, colour=on).text(CHECKS, made) for on in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[33mpartial\x1b[0m" in coloured
    assert re.sub(r" +$", "", re.sub("\x1b\\[[0-9;]*m", "", coloured), flags=re.M) == plain


def test_control_characters_do_not_reach_the_terminal() -> None:
    made = with_hooks(hook("\x1b[2Jh", HookState.DENIED, "\x1b[31m"))
    made.found["kernel"] = "\x1b]0;x\x07"
    made.found["invariants"]["M1"]["reason"] = "\u202e"
    for verbose in (False, True):
        checks = [Check("OTLP", WRONG, "http://\x1b[2J", "\x1b[31m")]
        text = Page(80).text(checks, made, verbose=verbose)
        failed = Page(80).failed([], RmapdError("\x1b[2J"))
        assert "\\x1b[2J" in text
        assert not set(text + failed) & set("\x1b\x07\u202e"), verbose


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RmapdError("no", why="a\nb", hint="c"), "no: a; b; try: c"),
        (ZeroDivisionError("x"), "ZeroDivisionError"),
    ],
)
def test_kernel_that_cannot_be_examined_is_the_verdict(error: Exception, expected: str) -> None:
    text = Page(80).failed(CHECKS, error)
    head = " ".join(text.partition("\n\n")[0].split())
    assert head == (
        f"This kernel could not be examined: {expected}. The installation is complete, with 1 note."
    )
    assert "\ninstallation\n" in text


@contextlib.contextmanager
def doctor(
    monkeypatch: pytest.MonkeyPatch, *args: str, found: KernelReport | Exception, **environ: str
) -> Iterator[Any]:
    """Run `rmapd doctor` on a terminal of 80 columns and a kernel that was examined before."""

    @contextlib.contextmanager
    def examined(*_: object) -> Iterator[KernelReport]:
        if isinstance(found, Exception):
            raise found
        yield found

    monkeypatch.setattr(cli_doctor, "_examined", examined)
    monkeypatch.setattr(installation, "examine", lambda *_: CHECKS)
    is_terminal = screen.is_terminal
    with terminal(80) as stream:
        monkeypatch.setattr(screen, "is_terminal", lambda _stream: is_terminal(stream))
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        yield CliRunner().invoke(main, ["doctor", *args], env=environ)


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({}, False)],
)
def test_command_has_colours_on_a_terminal_unless_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], coloured: bool
) -> None:
    with doctor(monkeypatch, found=report(tracepoints_only()), **environ) as done:
        assert (done.exit_code, "\x1b[" in done.stdout) == (0, coloured)
        assert f"14 of {EVERY} invariants" in done.stdout


def test_command_that_fails_prints_what_it_found_and_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with doctor(monkeypatch, found=RmapdError("no BTF", hint="another kernel")) as done:
        assert done.exit_code == 2
        assert done.stdout.startswith("This kernel could not be examined: no BTF; try: another")
        assert done.stderr == "rmapd: no BTF\n  try: another kernel\n"


def test_verbose_is_an_option_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with doctor(monkeypatch, "-v", found=report(tracepoints_only())) as done:
        assert re.search(r"^    denied +vma_expand\b", done.stdout, re.M)


def test_json_has_everything_and_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    made = report(tracepoints_only())
    with doctor(monkeypatch, "--format", "json", found=made) as done:
        found = json.loads(done.stdout)
    assert found["verdict"] == verdict(CHECKS, made).text
    assert found["installation"]["bcc"] == {"state": OK, "says": "installed", "hint": ""}
    assert {name: found[name] for name in made.found} == made.found
    assert [one["kind"] for one in found["hook_groups"]] == ["attached", "refused"]
