"""Time what people wait for at a large study: 1,000 trials of 50 epochs, put straight into tables.

    python benchmarks/large_study.py --json large.json

The study lies in an embedded Postgres of a temporary home, in our tables and in Optuna's, as
workers would have left it. Measured, each several times: whole commands; the polls of our dashboard
and of Optuna's own over the same database, each in a fresh process; and what a worker needs from
its imports to its first trial. Prints seconds as a Markdown table: n, median, lowest and highest.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.request import urlopen

os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna
import optuna_dashboard
import psutil
from sqlalchemy import text

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from large_rows import fill  # noqa: E402

from nbtl_search.ledger import database, schema  # noqa: E402
from nbtl_search.ledger.leases import Leases  # noqa: E402
from nbtl_search.postgres import server  # noqa: E402
from nbtl_search.reports.dashboard import server as dashboard  # noqa: E402
from nbtl_search.study import sampling, store  # noqa: E402
from nbtl_search.workspace.workspace import Workspace  # noqa: E402  (from the checkout, tests included)
from tests.plausible_study import make_spec  # noqa: E402

LARGE, SMALL = "large", "small"
N_SMALL = 10
N_LATER = 5
PAUSE_S, N_PAUSES = 0.5, 100
GOALS_S = {
    f"status of {LARGE}": 1.5,
    f"status --json of {LARGE}": 1.5,
    "our dashboard, first poll": 1.0,
    "our dashboard, later polls": 0.3,
    "a worker's start to its first lease, without imports": 3.0,
}


def main() -> None:
    """Fill, measure, print; or be one of the processes that are measured."""
    options = _options()
    if options.part:
        json.dump(_PARTS[options.part](options.home), sys.stdout)
        return
    home = Path(tempfile.mkdtemp(prefix="nbtl-large-", dir="/tmp"))
    home.chmod(0o711)
    try:
        _make(home, n_trials=options.trials, n_epochs=options.epochs, n=options.n)
        found = _measured(home, n=options.n)
    finally:
        server.stop(home)
        shutil.rmtree(home)
    machine = (
        f"{options.trials} trials x {options.epochs} epochs; {psutil.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, {platform.machine()}, Python {platform.python_version()}"
    )
    _print_table(machine, found)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine, "seconds": found}, indent=1))


# -- the studies ------------------------------------------------------------------------------


def _make(home: Path, *, n_trials: int, n_epochs: int, n: int) -> None:
    with closing(database.connect(None, home=home)) as opened:
        database.create_or_upgrade(opened)
        for name, n_filled in ((SMALL, N_SMALL), (LARGE, n_trials)):
            spec = make_spec(n_trials=n_filled + n, n_epochs=n_epochs, name=name)  # n to be asked
            fill(store.create(opened, spec), n_trials=n_filled)
        with opened.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))  # as the server itself does within a minute


# -- the measurements -------------------------------------------------------------------------


def _measured(home: Path, *, n: int) -> dict[str, list[float]]:
    commands = {
        f"status of {LARGE}": ["status", LARGE, "--home", str(home)],
        f"status --json of {LARGE}": ["status", LARGE, "--json", "--home", str(home)],
        f"status of {SMALL}": ["status", SMALL, "--home", str(home)],
        f"status --json of {SMALL}": ["status", SMALL, "--json", "--home", str(home)],
        "--help": ["--help"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(n):  # in turn, so that other work on the machine meets all of them
        for name, command in commands.items():
            found[name].append(_command_s(command))
        for part in ("ours", "stock", "cold"):
            for name, seconds in _part(part, home).items():
                found.setdefault(name, []).extend(seconds)
    return found


def _command_s(arguments: Sequence[str]) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "nbtl_search.cli", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _part(name: str, home: Path) -> dict[str, list[float]]:
    command = [sys.executable, __file__, "--part", name, "--home", str(home)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def _cold(home: Path) -> dict[str, list[float]]:
    """Do what a worker does from its start to its first lease; all is imported already."""
    started = time.perf_counter()
    with Workspace(home).open_study(LARGE) as study:
        engine = study.storage.engine
        # A lease that outlives the benchmark: the next run is to ask, not to take this one's over.
        leases = Leases(engine, study.id, ladder=study.ladder, lease_s=86400)
        schema.check(engine)
        lease = leases.take_over("benchmark") or leases.grant(
            "benchmark",
            sampling.asking(study),
        )
        took_s = time.perf_counter() - started
        assert lease is not None, "the budget has a trial for each run"  # noqa: S101
        assert lease.attempt == 1, "it was asked for, not taken over"  # noqa: S101
    return {"a worker's start to its first lease, without imports": [took_s]}


def _ours(home: Path) -> dict[str, list[float]]:
    with closing(database.connect(None, home=home)) as opened:
        study_id = store.open_study(opened, LARGE).id
    with (
        closing(database.connect(None, home=home)) as opened,
        dashboard.listening(opened) as served,
    ):
        return _polls("our dashboard", served, study_id, figures=True)


def _stock(home: Path) -> dict[str, list[float]]:
    with closing(database.connect(None, home=home)) as opened:
        study_id = store.open_study(opened, LARGE).id
        address = opened.url.render_as_string(hide_password=False)
    with dashboard.Server("127.0.0.1", 0) as served:
        served.set_app(optuna_dashboard.wsgi(optuna.storages.RDBStorage(address)))
        return _polls("Optuna's dashboard", served, study_id, figures=False)


def _polls(
    who: str, served: dashboard.Server, study_id: int, *, figures: bool
) -> dict[str, list[float]]:
    """Poll as a page does: all trials first, then those that had not ended, and our figures."""
    address = f"{served.address}api/studies/{study_id}"
    with _handling(served):
        first, n_trials, _ = _poll_s(f"{address}?after=0")
        soon = _poll_s(f"{address}?after={n_trials}")[0]
        time.sleep(PAUSE_S)
        for _ in range(N_PAUSES):
            if not figures or _poll_s(f"{address}?after={n_trials}")[2]:
                break
            time.sleep(PAUSE_S)
        later = [_poll_s(f"{address}?after={n_trials}")[0] for _ in range(N_LATER)]
        again = _poll_s(f"{address}?after=0")[0]
    return {
        f"{who}, first poll": [first],
        f"{who}, second poll at once": [soon],
        f"{who}, later polls": later,
        f"{who}, another page's first poll": [again],
    }


def _poll_s(url: str) -> tuple[float, int, int]:
    """Return the seconds, and how many trials and figures were in the answer."""
    started = time.perf_counter()
    with urlopen(url, timeout=120) as sent:  # noqa: S310  (our own server)
        body = sent.read()
    took_s = time.perf_counter() - started
    answer = json.loads(body)
    return took_s, len(answer["trials"]), len(answer["plotly_graph_objects"])


@contextmanager
def _handling(served: dashboard.Server) -> Iterator[None]:
    stopped = threading.Event()

    def handle() -> None:
        while not stopped.is_set():
            served.handle_request()

    thread = threading.Thread(target=handle)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


_PARTS = {"cold": _cold, "ours": _ours, "stock": _stock}


def _print_table(machine: str, found: dict[str, list[float]]) -> None:
    print(f"{machine}\n\n| what | n | median (min to max), s | goal, s |\n|---|---|---|---|")
    for name, seconds in found.items():
        goal = GOALS_S.get(name)
        shown = f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
        verdict = ""
        if goal is not None:
            verdict = f"{goal:g}, {'met' if statistics.median(seconds) < goal else 'missed'}"
        print(f"| {name} | {len(seconds)} | {shown} | {verdict} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("-n", type=int, default=5, help="runs to time")
    parser.add_argument("--json", type=Path, help="where all seconds go as well")
    parser.add_argument("--part", choices=sorted(_PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
