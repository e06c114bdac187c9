"""Measurements: this server beside its alternatives (`python -m bench`), and at scale (`python -m bench.scale`).

Knows the server from outside: its commands, settings and tables. Nothing of it is shipped or imported by the server.
"""
