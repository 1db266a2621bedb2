"""Grafana's own schema of dashboards, of the npm package @grafana/schema (Apache-2.0).

schema.json is of Grafana 13.2.3: board.ts says how it is made.
"""
