"""What rmapd's own processes are: children, users and capabilities, the system-call filter, locks, signals, systemd.

Knowledge of memory management does not belong here, nor what the processes are for.
"""
