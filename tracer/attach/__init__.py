"""From an attach plan to attached programs: resolve, compile, load, attach, check that they stay.

plan.py defines hooks, their states and the reasons of each. attach_process runs resolver and loader
in a child process. Hooks are data (probes/*.toml); an invariant names those it needs. Reading what
programs record belongs to tables/.
"""
