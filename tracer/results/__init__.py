"""Immutable values that leave the checker: snapshots, protocols with verdicts, history, standing, the JSON form.

Outputs and reports read these and nothing else. Nothing here counts or judges.
"""
