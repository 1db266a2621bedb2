"""The process that outlives the checker, the memory it shares with it, and the command of `rmapd exec`.

It imports little, because it must survive what kills the checker. What is done with what a dead checker left belongs to daemon/.
"""
