"""Workspace: a home folder and a database, with everything one can do there."""
