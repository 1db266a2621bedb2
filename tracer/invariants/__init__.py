"""The rules that the kernel must keep, one file a family, and the verdicts on them.

A file declares its invariants in INVARIANTS, and catalogue.py finds them. No file here knows BCC, a
map or a metric.
"""
