"""Immutable values that leave the checker: snapshot, protocols, history, standing, JSON form.

Outputs and reports read these and nothing else. Nothing here counts or judges.
"""
