"""`rmapd --version`: rmapd, its commit, the kernel, and what compiles the probes."""

from __future__ import annotations

import os
import platform

import click

import tracer


def version_text() -> str:
    """Return the versions, one a line; what cannot be found out is `unknown`.

    It needs neither privileges nor bcc.
    """
    from tracer.attach.clang_version import bcc_version, clang_version
    from tracer.source_commit import source_commit

    kernel = os.uname()
    parts = {
        "rmapd": tracer.__version__,
        "commit": source_commit(),
        "kernel": f"{kernel.release} {kernel.machine}",
        "Python": platform.python_version(),
        "BCC": bcc_version(),
        "clang": clang_version(),
    }
    return "\n".join(f"{name:7} {text}" for name, text in parts.items())


def _print(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(version_text())
        ctx.exit()


version_option = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print,
    help="Show the versions of rmapd, kernel, Python, BCC and clang.",
)
