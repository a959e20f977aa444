"""The one server per test process of which tests fork theirs: it has imported everything."""

import multiprocessing

# Python has one fork server a process, and its first list counts: so both uses are in this one.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "timm",
        "scipy.stats",
        "optuna",
        "sqlalchemy.dialects.postgresql.psycopg2",
        "nbtl_search.cli.app",
        "tests.chaos.workers",
    ]
)
