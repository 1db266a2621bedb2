"""The command `compile`: make the programs for a kernel whose host has no compiler."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from tracer import config as configuration
from tracer.cli_common import (
    LogChoice,
    config_option,
    load_settings,
    log_options,
    require_privilege,
    start_log,
)
from tracer.cli_help import Command

_RUNNING = "/sys/kernel/btf/vmlinux"


@click.command(
    "compile",
    cls=Command,
    short_help="Compile for a host that has no compiler.",
    exits=(
        ("0", "the objects are written"),
        ("2", "usage, no BTF in the file, or no BCC here"),
        ("75", "a condition that may pass: memory is short"),
    ),
    examples=(
        (
            "For a host whose /sys/kernel/btf/vmlinux was copied here",
            "sudo rmapd compile --btf vmlinux.btf --out objects",
        ),
        ("For this kernel; then python3-bpfcc can be removed", "sudo rmapd compile"),
    ),
)
@click.option(
    "--btf",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=f"The types of that host's kernel (default: this one's, {_RUNNING}).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the objects into this folder (default: the cache of the configuration).",
)
@config_option
@log_options(steps=False)
def compile_(btf: Path | None, out: Path | None, config: Path | None, log: LogChoice) -> None:
    """Compile the probes for a kernel, and write what a start there needs instead of BCC and clang.

    Put the files into that host's cache, /var/cache/rmapd. They fit the kernel whose types they are
    made for, this version of rmapd, and the sizes that the configuration has in [maps].
    """
    settings = start_log(load_settings(config, None, log))
    folder = out or (Path(settings.cache) if settings.cache else None)
    if folder is None:
        raise click.UsageError("the configuration has no cache: --out is needed")
    require_privilege()
    import os

    from tracer.attach import objects
    from tracer.daemon.probes import probes_folder
    from tracer.kernel.btf import Btf

    name = btf.name if btf else os.uname().release
    types = Btf.read(btf or Path(_RUNNING))
    for one in objects.for_types(types, name, [probes_folder()], settings.maps.sizes()):
        with tempfile.TemporaryDirectory(prefix="rmapd-") as headers:
            made = objects.make(one, folder, Path(headers))
        loads = "without" if one.kernel.plain_loads_refused else "with"
        click.echo(f"{made}\n  for {name}, {loads} plain loads, {made.stat().st_size:,} bytes")
    if folder != Path(configuration.Config().cache):
        click.echo(f"put what is in {folder} into {configuration.Config().cache} of that host")
