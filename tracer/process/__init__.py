"""Operating-system facts of rmapd's own processes: children, user, capabilities, seccomp, systemd.

Also here: the lock file, signals, and descriptors passed between processes. Nothing here knows
about memory management, or what the processes are for.
"""
