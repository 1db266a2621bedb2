"""Facts of the running kernel: its types (BTF), symbols, release, taint and switches.

Nothing here attaches a probe or decides a verdict: other packages ask what this kernel has.
"""
