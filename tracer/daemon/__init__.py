"""From attach to detach: the session, `run`, `exec` and `doctor`, fidelity, and crash recovery.

This package puts the others together. Rules, layouts and formats do not belong here.
"""
