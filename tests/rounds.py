"""The two rounds of tests: `make test`, and `make chaos`, which repeats its proofs at length."""

import os

N_SCHEDULES = int(os.environ.get("NBTL_CHAOS_SCHEDULES", "4"))
LONG = "NBTL_CHAOS_SCHEDULES" in os.environ
