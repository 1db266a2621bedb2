"""What differs between processors: page-table formats, registers, numbers of system calls.

One module for each machine. The kernel under check names its own (Kernel.machine); nothing here is
read from the running system at import.
"""
