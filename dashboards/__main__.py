"""Write the dashboards, rules and alerts."""

from __future__ import annotations

from pathlib import Path

import click

from dashboards import FOLDER, files
from dashboards.settings import DEFAULTS, load
from tracer.errors import RmapdError


@click.command()
@click.option("--config", type=click.Path(path_type=Path), default=DEFAULTS, help="the settings")
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="the output folder")
def main(config: Path, out: Path) -> None:
    """Write grafana/*.json and prometheus/*.yaml with the settings of a file."""
    try:
        made = files(load(config))
    except RmapdError as error:
        raise click.ClickException(str(error)) from error
    for name, text in made.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        click.echo(path)


if __name__ == "__main__":
    main()
