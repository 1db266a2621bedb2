"""Keep a JSON schema that board.ts was made into: without its texts, and with Prometheus's part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent / "schema.json"
PROMETHEUS = ("expr", "step", "tagKeys", "textFormat", "titleFormat")
"""Members of an annotation that are of its data source, which Grafana's own types leave out."""


def without_texts(schema: Any) -> Any:
    """Return a schema without descriptions and defaults."""
    if isinstance(schema, dict):
        return {
            name: without_texts(one)
            for name, one in schema.items()
            if name not in ("description", "default") or isinstance(one, dict)
        }
    return [without_texts(one) for one in schema] if isinstance(schema, list) else schema


def main(made: str) -> None:
    """Write schema.json from what ts-json-schema-generator has written."""
    schema = without_texts(json.loads(Path(made).read_text()))
    annotation = schema["properties"]["annotations"]["properties"]["list"]["items"]
    annotation["properties"] |= {name: {"type": "string"} for name in PROMETHEUS}
    KEPT.write_text(json.dumps(schema, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
