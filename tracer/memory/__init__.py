"""Kernel memory read by value, on demand: page tables, VMAs, folios.

Reads take no lock and cause no fault: BPF programs copy the memory (bpf_probe_read_kernel()).
The meaning of a value for an invariant belongs to invariants/.
"""
