"""Turns events and rows into verdicts: open cases, distinct protocols, findings with their evidence.

The rules themselves belong to invariants/; how findings are shown, to outputs/ and report/.
"""
