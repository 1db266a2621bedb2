"""bpf(2) by file descriptor: maps, the ring buffer, programs and links.

Nothing here knows BCC, the layout of a map's values, or what a program is for.
"""
