"""From attach to detach: the session, `run` and `exec`, how much is probed, what is left after a death, `doctor`.

This package puts the others together. A rule, a layout or a format does not belong here.
"""
