"""The process that outlives the checker, the memory they share, and the command of `rmapd exec`.

The supervisor imports little: the fewer pages it touches, the less can stop it together with the
checker. Whatever reads a dead checker's results belongs to daemon/.
"""
