"""The rules that the kernel must keep, one file a family, and what a verdict on one is.

An invariant is declared in INVARIANTS of its file and found by catalogue.py. No file here knows BCC, a map or a metric.
"""
