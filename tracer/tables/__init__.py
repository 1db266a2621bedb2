"""BPF maps decoded: one class a table, that turns bytes into values.

The structs that docstrings name are in the header that the BPF programs include (c_structs parses
it). A table gives no verdict, and reads no kernel memory.
"""
