"""Postgres: the embedded server, and connections to any server. Our tables are in `ledger`."""
