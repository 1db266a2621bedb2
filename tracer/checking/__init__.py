"""Turns events and rows into verdicts: open cases, protocols, findings with evidence.

The rules themselves belong to invariants/; how findings are shown, to outputs/ and report/.
"""
