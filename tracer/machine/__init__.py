"""What differs between processors: page-table formats, registers, numbers of system calls.

One module for each machine. The kernel under check names its own (Kernel.machine); `system_calls`
is about the machine that this process runs on. What an invariant means does not belong here.
"""
