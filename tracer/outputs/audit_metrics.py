"""Prometheus metrics of the state audit."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from tracer.outputs.families import counter, gauge
from tracer.results.audit import ENDED, AuditProgress

_OBJECTS = {
    "mm": "mms",
    "vma": "vmas",
    "maple_node": "nodes",
    "climb": "climbs",
    "anon_vma_chain": "chain_entries",
    "map_count": "map_counts",
    "sample": "samples",
    "anon_page": "anon_pages",
}
"""Label -> the name of the count."""
_NO_VERDICT = {
    "mm_gone": "mms_gone",
    "led_astray": "astray",
    "map_count_changing": "map_counts_disturbed",
}


def audit_metrics(audit: AuditProgress) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    """Yield the metrics; all are zero where there is no audit."""
    text = "1 if the trees of all mms are audited."
    yield gauge("rmapd_audit_ready", text, (), [((), float(not audit.reason))])
    text = "Age of the last look at the mm that has waited the longest."
    yield gauge("rmapd_audit_pass_seconds", text, (), [((), audit.oldest_seconds)])
    yield gauge("rmapd_audit_mms", "Mms that the audit knows.", (), [((), audit.known_mms)])
    looked = [((label,), audit.counted.get(name, 0)) for label, name in _OBJECTS.items()]
    yield counter("rmapd_audit_objects", "What the audit looked at.", ("kind",), looked)
    skipped = [((label,), audit.counted.get(name, 0)) for label, name in _NO_VERDICT.items()]
    text = "Looks, or parts of them, that gave no verdict, by reason."
    yield counter("rmapd_audit_skipped", text, ("reason",), skipped)
    passes = audit.counted.get("passes", 0)
    yield counter("rmapd_audit_passes", "Passes over all mms.", (), [((), passes)])
    ended = [((how,), audit.doubts.get(how, 0)) for how in ENDED.values()]
    text = "Ranges of addresses that looked wrong at first, by how that ended."
    yield counter("rmapd_audit_doubts", text, ("ended",), ended)
    yield gauge("rmapd_audit_open_doubts", "Doubts without a decision.", (), [((), audit.open)])
    text = "CPU time that the audit took."
    yield counter("rmapd_audit_cpu_seconds", text, (), [((), audit.cpu_seconds)])
