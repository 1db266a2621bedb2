"""The settings of a fleet: read from YAML, checked, and filled into queries and rules.

config.yaml has every key with its default. In queries, texts and templates `<<name>>` is a
setting: `<<selector>>` the matchers of rmapd's raw series, `<<cluster>>` the label of a cluster,
`<<target>>` the labels that name a host, `<<runbooks>>` the URL of the runbooks,
`<<thresholds.NAME>>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jinja2
import msgspec
import promql_parser as promql
import yaml

from tracer.errors import RmapdError

DEFAULTS = Path(__file__).parent / "config.yaml"
_TEMPLATES = Path(__file__).parent / "templates"
_FILL = jinja2.Environment(
    variable_start_string="<<",
    variable_end_string=">>",
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - PromQL and YAML, no HTML
)

_Limit = Annotated[float, msgspec.Meta(gt=0)]
_Ratio = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of alerts and colours; config.yaml has the meaning of each."""

    lock_wait_seconds: _Limit
    lock_waits_least: _Limit
    unverifiable_ratio: _Ratio
    unverifiable_many_ratio: _Ratio
    read_late_seconds: _Limit
    read_stalled_seconds: _Limit
    audit_pass_seconds: _Limit
    entries_outstanding: _Limit
    tick_gap_seconds: _Limit
    resident_bytes: _Limit
    series_per_scrape: _Limit


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting; config.yaml has the meaning and the default of each."""

    job: Annotated[str, msgspec.Meta(min_length=1, pattern=r'^[^"\\]+$')]
    selector: str
    cluster_label: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
    runbook_url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s\"]+$")]
    thresholds: Thresholds

    @property
    def matchers(self) -> str:
        """The matchers of rmapd's raw series."""
        kind = "=" if re.fullmatch(r"[\w./ -]+", self.job) else "=~"
        return f'job{kind}"{self.job}"' + (f", {self.selector}" if self.selector else "")

    def fill(self, text: str) -> str:
        """Return the text with each `<<name>>` replaced by its setting."""
        if "<<" not in text:
            return text
        return _FILL.from_string(text).render(
            selector=self.matchers,
            cluster=self.cluster_label,
            target=f"{self.cluster_label}, job, instance",
            runbooks=self.runbook_url.rstrip("/"),
            job=self.job,
            thresholds={
                name: f"{getattr(self.thresholds, name):.10g}"
                for name in self.thresholds.__struct_fields__
            },
        )

    def threshold(self, value: float | str) -> float:
        """Return a limit: a number, or the one of this name in `thresholds`."""
        return getattr(self.thresholds, value) if isinstance(value, str) else value

    def rules(self) -> dict[str, str]:
        """Return the text of each file of rules and alerts by its name."""
        return {
            path.name: self.fill(path.read_text()) for path in sorted(_TEMPLATES.glob("*.yaml"))
        }


def load(path: Path = DEFAULTS) -> Settings:
    """Read a file of settings over the defaults; raises RmapdError with the file and the key."""
    given = _read(path)
    whole = _merged(_read(DEFAULTS), given)
    hint = f"{DEFAULTS} has every key with its meaning"
    try:
        settings = msgspec.convert(whole, Settings)
    except msgspec.ValidationError as error:
        raise RmapdError(f"the settings {path} are wrong", why=str(error), hint=hint) from error
    if not _are_matchers(settings.matchers):
        raise RmapdError(
            f"job or selector in {path} is wrong",
            why=f"{settings.matchers!r} is no list of PromQL matchers",
            hint='selector: region="north", env!="dev"',
        )
    return settings


def _are_matchers(text: str) -> bool:
    try:
        return isinstance(promql.parse(f"up{{{text}}}"), promql.VectorSelector)
    except ValueError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RmapdError(
            f"cannot read the settings {path}", why=str(error), hint=f"a copy of {DEFAULTS}"
        ) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RmapdError(
            f"the settings {path} are wrong",
            why=f"the file is a {type(found).__name__}, not keys with values",
            hint="job: rmapd",
        )
    return found


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given values over the defaults, tables key by key."""
    both = {**defaults, **given}
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(given.get(name), dict):
            both[name] = _merged(value, given[name])
    return both
