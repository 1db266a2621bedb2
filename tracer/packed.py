"""Pack values that are kept for long and seldom read: a trail takes 50 KB as objects, packed 2."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any


def pack(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return JSON objects as bytes; of none, no bytes. A text may have lone surrogates."""
    return zlib.compress(json.dumps(rows).encode()) if rows else b""


def unpack(packed: bytes) -> list[dict[str, Any]]:
    """Return what was packed, with lists for tuples."""
    return list(json.loads(zlib.decompress(packed))) if packed else []
