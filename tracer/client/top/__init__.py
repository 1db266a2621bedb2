"""`rmapd top`: the full-screen view of a running daemon, in Textual (the extra `top`).

observer.py asks the daemon and knows no terminal; the other modules draw what it returns and ask
nothing themselves. Decisions are the API's: nothing here judges.
"""
