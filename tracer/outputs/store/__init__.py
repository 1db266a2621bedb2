"""The SQLite store of findings, hourly counts and runs, which outlives the daemon.

writer.py writes, reader.py reads without writing, database.py owns the file, and schema.py has the
tables. outputs/sinks.py decides what is stored, and when.
"""
