"""The loads of `rmapd soak`, their limits, and the runs of `rmapd exec` over them.

Loads are data (loads/*.toml); what they do in Python is in stressors.py. Checking does not belong
here: `rmapd exec` does it, as a process of its own. Statistics and texts are in report/.
"""
