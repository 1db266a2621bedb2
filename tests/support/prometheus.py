"""Run Debian's Prometheus with the project's rules, and query its HTTP API."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.live.conftest import ROOT
from tests.support.daemons import fetch, until

RULES = ROOT / "dashboards/prometheus"
SCRAPE_SECONDS = 1


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """The HTTP API of a Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a path of the API."""
        status, body = fetch(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}")
        assert status == 200, body
        return json.loads(body).get("data")

    def query(self, expr: str) -> list[Any]:
        """Return the result of an instant query."""
        return list(self.get("/api/v1/query", query=expr)["result"])

    def firing(self) -> dict[tuple[str, str], dict[str, str]]:
        """Return labels and annotations of the firing alerts by name and instance."""
        alerts = self.get("/api/v1/alerts")["alerts"]
        return {
            (a["labels"]["alertname"], a["labels"].get("instance", "")): a["labels"]
            | a["annotations"]
            for a in alerts
            if a["state"] == "firing"
        }


def shortened(text: str) -> str:
    """Shorten each `for` of the alerts to a scrape interval; expressions stay as they are."""
    loaded = yaml.safe_load(text)
    for group in loaded["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = f"{SCRAPE_SECONDS}s"
    return yaml.safe_dump(loaded)


def prometheus(
    folder: Path, *targets: str, **more: Any
) -> contextlib.AbstractContextManager[Prometheus]:
    """Run Prometheus on these targets with our rules; alerts fire after a scrape interval.

    more: further keys of its configuration.
    """
    for name in ("rules.yaml", "alerts.yaml"):
        (folder / name).write_text(shortened((RULES / name).read_text()))
    hosts = {"targets": list(targets), "labels": {"cluster": "east"}}
    scrape = {"job_name": "rmapd", "static_configs": [hosts]}
    return running(
        folder, {"rule_files": ["rules.yaml", "alerts.yaml"], "scrape_configs": [scrape], **more}
    )


@contextlib.contextmanager
def running(
    folder: Path, config: dict[str, Any], *flags: str, patience: float = 30
) -> Iterator[Prometheus]:
    """Run a Prometheus with this configuration; it must be ready within `patience` seconds."""
    times = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    whole = {**config, "global": {**times, **config.get("global", {})}}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(whole))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        *flags,
    ]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        api = Prometheus(f"http://127.0.0.1:{port}")

        def ready() -> bool:
            with contextlib.suppress(OSError):
                return fetch(f"{api.url}/-/ready")[0] == 200
            return False

        try:
            until(ready, patience, "prometheus is ready")
            yield api
        finally:
            process.terminate()
            process.wait(patience)
