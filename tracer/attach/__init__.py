"""From an attach plan to attached programs: hooks and their candidates, compiling, loading, attaching, watching that they stay.

Which hooks an invariant needs is data of the plan (probes/*.toml). Reading what programs record belongs to tables/.
"""
