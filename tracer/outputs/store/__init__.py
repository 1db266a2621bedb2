"""The SQLite store: findings, hours and runs that outlive the daemon.

writer.py writes, reader.py reads without writing, database.py owns the file, schema.py the tables. What is stored is decided by outputs/sinks.py.
"""
