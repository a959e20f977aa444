"""Time the report of a large study: 1,000 trials of 50 epochs, put straight into the tables.

    python benchmarks/report_page.py --home /tmp/report-home

Prints seconds (n, mean, standard deviation) and megabytes of the page, as a command of its own
would take them: each run is a new process.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from sqlalchemy import insert

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from nbtl_search import space  # noqa: E402  (from the checkout, tests included)
from nbtl_search.ledger import database, schema  # noqa: E402
from nbtl_search.postgres import server  # noqa: E402
from nbtl_search.spec import Dials  # noqa: E402
from nbtl_search.study import store  # noqa: E402
from nbtl_search.study.store import Study  # noqa: E402
from tests.plausible_study import curve, make_spec  # noqa: E402

NAME = "large"
_KNOWN = ("default", "paper-best")


def main() -> None:
    """Fill, report several times, print."""
    options = _options()
    home = options.home
    opened = database.connect(None, home=home)
    database.create_or_upgrade(opened)
    spec = make_spec(n_trials=options.trials, n_epochs=options.epochs, name=NAME)
    try:
        fill(store.create(opened, spec), n_trials=options.trials)
    finally:
        opened.close()
    page = home / "report.html"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = [_run(home, page) for _ in range(options.n)]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = (after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime) / options.n
    server.stop(home)
    spread = statistics.stdev(seconds) if len(seconds) > 1 else 0.0
    print(
        f"{options.trials} trials x {options.epochs} epochs: "
        f"{statistics.mean(seconds):.1f} ± {spread:.1f} s (n = {len(seconds)}), "
        f"{cpu_s:.1f} s of CPU each without the database, "
        f"{page.stat().st_size / 1e6:.1f} MB; {psutil.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, {platform.machine()}, Python {platform.python_version()}"
    )


def fill(study: Study, *, n_trials: int) -> None:
    """Put trials that ran to their end, and their epochs, straight into the ledger."""
    spec = study.spec
    searched = space.build(spec.search, n_blocks=study.facts.n_blocks)
    known = [space.known_dials(one, space=searched) for one in spec.search.known]
    points = space.design(searched, n=n_trials - len(known), seed=0)
    dials = [*known, *(Dials.parse(point) for point in points)]
    trials, epochs = [], []
    for number, point in enumerate(dials):
        done = curve(point, n_epochs=spec.train.epochs, n_val=study.facts.n_val, seed=number)
        best = max(done, key=lambda epoch: epoch.val_top1 or 0.0)
        trials.append(
            {
                "trial_id": 1_000_000 + number,
                "study_id": study.id,
                "number": number,
                "slot": number + 1,
                "name": _KNOWN[number] if number < len(_KNOWN) else "",
                "protected": number < len(_KNOWN),
                "recipe": spec.recipe(point),
                "state": "complete" if number % 3 == 0 else "pruned",
                "value": best.val_top1,
                "best_epoch": best.epoch,
                "notified": True,
                "finished_at": datetime.now(UTC),
            }
        )
        epochs += [
            {**epoch.model_dump(), "trial_id": 1_000_000 + number, "attempt": 1} for epoch in done
        ]
    with study.storage.engine.begin() as connection:
        connection.execute(insert(schema.trial), trials)
        connection.execute(insert(schema.epoch), epochs)


def _run(home: Path, page: Path) -> float:
    command = [sys.executable, "-m", "nbtl_search.cli", "report", NAME]
    started = time.monotonic()
    subprocess.run([*command, "--home", str(home), "-o", str(page)], check=True, cwd=ROOT)
    return time.monotonic() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="an empty folder")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("-n", type=int, default=3, help="runs to time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
