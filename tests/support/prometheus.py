"""Debian's Prometheus, started with our rules, and its HTTP API."""

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

from tests.live.conftest import ROOT, fetch, until

RULES = ROOT / "dashboards/prometheus"
SCRAPE_SECONDS = 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        status, body = fetch(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}")
        assert status == 200, body
        return json.loads(body).get("data")

    def query(self, expr: str) -> list[Any]:
        return list(self.get("/api/v1/query", query=expr)["result"])

    def firing(self) -> dict[tuple[str, str], dict[str, str]]:
        """Labels of the alerts that fire, by name and instance."""
        alerts = self.get("/api/v1/alerts")["alerts"]
        return {
            (a["labels"]["alertname"], a["labels"].get("instance", "")): a["labels"]
            | a["annotations"]
            for a in alerts
            if a["state"] == "firing"
        }


def hurried(text: str) -> str:
    """The alerts with `for` cut to a scrape interval: what is waited for is shortened, what is asked is not."""
    loaded = yaml.safe_load(text)
    for group in loaded["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = f"{SCRAPE_SECONDS}s"
    return yaml.safe_dump(loaded)


def prometheus(
    folder: Path, *targets: str, **more: Any
) -> contextlib.AbstractContextManager[Prometheus]:
    """Debian's Prometheus over these targets, with our rules; alerts without their patience."""
    for name in ("rules.yaml", "alerts.yaml"):
        (folder / name).write_text(hurried((RULES / name).read_text()))
    scrape = {"job_name": "rmapd", "static_configs": [{"targets": list(targets)}]}
    return running(
        folder, {"rule_files": ["rules.yaml", "alerts.yaml"], "scrape_configs": [scrape], **more}
    )


@contextlib.contextmanager
def running(
    folder: Path, config: dict[str, Any], *flags: str, patience: float = 30
) -> Iterator[Prometheus]:
    """A Prometheus with this configuration, ready within so many seconds."""
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
