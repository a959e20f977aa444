"""Load one database with many workers whose trials take no time; then plain Optuna beside it.

    python benchmarks/load.py --workers 64 --trials 1000 --epochs 5

Each worker is a real supervisor process with an idle trainer, all at one embedded Postgres. Prints
Markdown: what each step with the database took, inside the workers; connections; the memory of a
supervisor; whether exactly the trials of the budget were finished, and what is wrong if not. Plain
Optuna gets the same number of processes, space, sampler and trials, on the same server.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as a worker's; processes started here inherit it

import optuna
import psutil
from sqlalchemy import URL, NullPool, create_engine, text

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import load_worker  # noqa: E402
from load_worker import Job  # noqa: E402

from nbtl_search.postgres import server  # noqa: E402
from nbtl_search.spec import (  # noqa: E402  (from the checkout, tests included)
    Budget,
    DataSettings,
    Facts,
    Pruning,
    SearchSettings,
    StudySpec,
    TrainSettings,
)
from nbtl_search.study import store  # noqa: E402
from nbtl_search.study.store import Study  # noqa: E402
from tests.chaos import invariants  # noqa: E402

NAME = "load"
CHECKS = (
    invariants.budget,
    invariants.leases,
    invariants.attempts,
    invariants.failures,
    invariants.notified,
)
RSS_AT = (1, 25, 50, 100, 150, 200)
_GRACE_S = 30


def main() -> None:
    """Load, compare, print."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="nbtl-load-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        url = server.start(folder / "server")
        print(_machine(options), flush=True)
        if not options.no_rss:
            _print_rss(url, folder, options)
        _load_ours(url, folder, options)
        if not options.no_optuna:
            _load_optuna(url, folder, options)
    finally:
        server.stop(folder / "server")
        shutil.rmtree(folder)


def _print_rss(url: URL, folder: Path, options: argparse.Namespace) -> None:
    with _study(url, "memory", n_trials=max(RSS_AT) + 10, epochs=options.epochs) as study:
        job = _job(study, folder / "memory", options, rss_at=RSS_AT)
        _run([(load_worker.supervise, (job,))], limit_s=options.limit_s)
        (notes,) = _notes(job.home)
    shown = ", ".join(f"{mb:.1f} MB after trial {n}" for n, mb in notes["rss_mb"].items())
    print(f"\nOne supervisor over {max(RSS_AT) + 10} trials: {shown}.", flush=True)


def _load_ours(url: URL, folder: Path, options: argparse.Namespace) -> None:
    with _study(url, "ours", n_trials=options.trials, epochs=options.epochs) as study:
        job = _job(study, folder / "ours", options)
        with _connections(study.storage.url) as counts:
            took_s = _run(
                [(load_worker.supervise, (job,))] * options.workers, limit_s=options.limit_s
            )
        _print_table("nbtl-search", _notes(job.home), took_s)
        states = Counter(trial["state"] for trial in invariants.trials_of(study))
        print(f"\n{states.total()} trials of {options.trials}: {dict(states)}.")
        print(_spread_of(counts))
        wrong = [f"{check.__name__}: {line}" for check in CHECKS for line in check(study)]
        wrong += list(_gaps(study))
        print(f"Invariants: {f'{len(wrong)} violations: {wrong[:5]}' if wrong else 'all hold'}.")
        log = (job.home / "workers.log").read_text().splitlines()
        kinds = Counter(re.sub(r"\d+", "N", line)[:120] for line in log)
        print(f"The workers' log: {dict(kinds.most_common(5))}.")
    sys.stdout.flush()


def _load_optuna(url: URL, folder: Path, options: argparse.Namespace) -> None:
    target = _database(url, "plain")
    home = folder / "plain"
    home.mkdir()
    address = target.render_as_string(hide_password=False)
    study = optuna.create_study(study_name=NAME, storage=address, direction="maximize")
    job = Job(url=address, study=NAME, home=home, epoch_s=options.epoch_s)
    work = (job, _spec(n_trials=options.trials, epochs=options.epochs), options.trials)
    with _connections(target) as counts:
        took_s = _run(
            [(load_worker.optimise, work)] * options.workers, limit_s=options.optuna_limit_s
        )
    _print_table("plain Optuna", _notes(home), took_s)
    states = Counter(trial.state.name for trial in study.get_trials(deepcopy=False))
    print(f"\n{states.total()} trials where {options.trials} were asked for: {dict(states)}.")
    print(_spread_of(counts), flush=True)


# -- processes --------------------------------------------------------------------------------


def _run(work: Sequence[tuple[Callable[..., None], tuple[Any, ...]]], *, limit_s: float) -> float:
    """Run all to their ends, or to the limit; return the seconds it took."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["load_worker"])
    started = time.monotonic()
    processes = [context.Process(target=target, args=given) for target, given in work]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, started + limit_s - time.monotonic()))
    took_s = time.monotonic() - started
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(0.0, started + limit_s + _GRACE_S - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return took_s


def _job(
    study: Study, home: Path, options: argparse.Namespace, rss_at: tuple[int, ...] = ()
) -> Job:
    home.mkdir()
    url = study.storage.url.render_as_string(hide_password=False)
    return Job(url=url, study=NAME, home=home, epoch_s=options.epoch_s, rss_at=rss_at)


def _notes(home: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in home.glob("notes-*.json")]


# -- the database -----------------------------------------------------------------------------


@contextmanager
def _study(url: URL, database: str, *, n_trials: int, epochs: int) -> Iterator[Study]:
    """Make a study in a fresh database."""
    address = _database(url, database).render_as_string(hide_password=False)
    opened = database.connect(address, home=None)
    try:
        database.create_or_upgrade(opened)
        yield store.create(opened, _spec(n_trials=n_trials, epochs=epochs))
    finally:
        opened.close()


def _database(url: URL, name: str) -> URL:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return url.set(database=name)


def _spec(*, n_trials: int, epochs: int) -> StudySpec:
    return StudySpec(
        name=NAME,
        data=DataSettings(dataset="textures"),
        train=TrainSettings(epochs=epochs),
        search=SearchSettings(
            n_startup=10, pruning=Pruning(min_epochs=1, min_updates=1, rungs=(0.34, 0.67))
        ),
        budget=Budget(n_trials=n_trials),
        facts=Facts(
            n_blocks=22, n_classes=3, n_train=3200, n_val=12, n_test=12,
            data_digest="d" * 16, weights_digest="random",
        ),
    )  # fmt: skip


@contextmanager
def _connections(url: URL) -> Iterator[list[int]]:
    """Count the clients of this database every second while the block runs."""
    counts: list[int] = []
    stopped = threading.Event()
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND datname = :name AND pid <> pg_backend_pid()"
    )

    def watch() -> None:
        engine = create_engine(url.set(database="postgres"), poolclass=NullPool)
        with engine.connect() as connection:
            while not stopped.wait(1.0):
                counts.append(connection.execute(query, {"name": url.database}).scalar_one())
                connection.rollback()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield counts
    finally:
        stopped.set()
        thread.join()


def _gaps(study: Study) -> Iterator[str]:
    for number, rows in invariants.curves_of(study).items():
        if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
            yield f"curves: trial {number} has gaps"


# -- words ------------------------------------------------------------------------------------


def _print_table(who: str, notes: Sequence[dict[str, Any]], took_s: float) -> None:
    seconds: dict[str, list[float]] = defaultdict(list)
    for one in notes:
        for name, values in one["seconds"].items():
            seconds[name] += values
    print(f"\n## {who}: {len(notes)} processes, {took_s:.1f} s\n")
    print("| step | n | p50 | p99 | max |\n|---|---|---|---|---|")
    for name, values in sorted(seconds.items()):
        p50, p99 = _quantile(values, 0.5), _quantile(values, 0.99)
        print(f"| {name} | {len(values)} | {_ms(p50)} | {_ms(p99)} | {_ms(max(values))} |")
    errors = Counter(error for one in notes for error in one["errors"])
    if errors:
        print(f"\nErrors: {dict(errors.most_common(5))}")


def _quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _spread_of(counts: Sequence[int]) -> str:
    if not counts:
        return "Connections: not looked at, it was over within a second."
    return (
        f"Connections, each second (n = {len(counts)}): median {statistics.median(counts):.0f}, "
        f"at most {max(counts)}."
    )


def _machine(options: argparse.Namespace) -> str:
    return (
        f"{options.workers} workers, {options.trials} trials x {options.epochs} epochs of "
        f"{options.epoch_s:g} s; {psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"{platform.machine()}, Python {platform.python_version()}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--epoch-s", type=float, default=0.0, help="seconds of an epoch")
    parser.add_argument("--limit-s", type=float, default=480, help="when workers are stopped")
    parser.add_argument("--optuna-limit-s", type=float, default=480, help="the same for Optuna's")
    parser.add_argument("--no-rss", action="store_true", help="leave the memory out")
    parser.add_argument("--no-optuna", action="store_true", help="leave plain Optuna out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
