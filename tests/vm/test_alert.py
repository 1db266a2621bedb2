"""A violation in a real kernel fires the alert of a Prometheus that scrapes rmapd in the guest."""

from __future__ import annotations

import json
from pathlib import Path

from tests.vm.alert import SCRAPE_SECONDS
from tests.vm.guest import run

FAULTS = {
    "error_locked": {"L3"},
    "pgoff_lost": {"V1"},
    "not_paired": {"V2"},
    "import_lost": {"V5"},
    "walk_unlocked": {"L6"},
}
"""Each fault violates an invariant that no earlier one violates; other faults behave alike."""


def test_alert_fires_within_two_scrapes_of_a_violation(module: Path) -> None:
    command = f"insmod {module} && python -m tests.vm.alert $OUT/alert.json {' '.join(FAULTS)}"
    result = run("6.1", command, append="rmapd_faults=guest", label="alert", timeout=1200)
    assert result.code == 0, result.output
    found = json.loads((result.folder / "alert.json").read_text())
    assert (found["before"], found["gate"], found["exit"]) == ([], 1, 0)
    print(
        f"\nseconds from the strike, a scrape each {SCRAPE_SECONDS} s: "
        "| fault | invariant | log | metric | alert |"
    )
    for each in found["results"]:
        for name in each["shown"]:
            print(
                f"| {each['fault']} | {name} | {each['logged'][name]:.2f} "
                f"| {each['shown'][name]:.2f} | {each['fired'][name]:.1f} |"
            )
    for each in found["results"]:
        assert {*each["shown"]} == {*each["fired"]} == {*each["logged"]} == FAULTS[each["fault"]], (
            each
        )
        assert max(each["fired"].values()) <= 2 * SCRAPE_SECONDS, each
