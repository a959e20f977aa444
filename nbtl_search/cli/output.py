"""Output of commands besides plain lines: JSON, progress bars, a screen that stays."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from nbtl_search.spec import Epoch
    from nbtl_search.study.store import Study

DECODING: Final = "decoding images"
_PATIENCE_S: Final = 2.0
_STAGES = {
    "confirm": "runs on validation",
    "test": "runs on test",
    "ablation": "runs of the ablation",
}


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, default=str))


def console(*, stderr: bool = False) -> "Console":
    """Return the terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def late_stages() -> Iterator[Callable[[str, int, int], None]]:
    """Give a callback (stage, done, total) whose bar appears on stderr after two seconds.

    It shows the latest stage, and disappears when that is done.
    """
    bar, started_s = counting_bar(), time.monotonic()
    task = bar.add_task("", total=None)

    def tick(stage: str, done: int, total: int) -> None:
        bar.update(task, description=stage, completed=done, total=total, visible=done < total)
        if not bar.live.is_started and time.monotonic() - started_s > _PATIENCE_S:
            bar.start()

    try:
        yield tick
    finally:
        if bar.live.is_started:
            bar.update(task, visible=False)
            bar.stop()


@contextmanager
def late_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a callback (done, total) of one stage; see `late_stages`."""
    with late_stages() as tick:
        yield partial(tick, what)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on stderr that something goes on, once it takes longer than two seconds."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(what), TimeElapsedColumn())
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    bar.add_task(what, total=None)
    timer = threading.Timer(_PATIENCE_S, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if bar.live.is_started:
            bar.stop()


def counting_bar() -> "Progress":
    """Return a bar on stderr, not yet drawn, with a count and the time elapsed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console(stderr=True),
    )


@contextmanager
def search_progress(*, quiet: bool) -> Iterator["Callable[[Study], None] | None"]:
    """Give a callback that shows how far a study is; None if quiet."""
    if quiet:
        yield None
        return
    bar = counting_bar()
    task = bar.add_task("starting", total=None)

    def tick(study: "Study") -> None:
        from nbtl_search.errors import StorageLostError
        from nbtl_search.reports.terminal.status import status_of

        bar.start()  # not before: a study that does not exist gets its one line alone
        try:
            report = status_of(study)
        except StorageLostError:
            bar.update(task, description="waiting for the database")
            return
        best = f"best {report.best['value']:.2f} %" if report.best else "no result yet"
        counts = ", ".join(
            f"{getattr(report, state)} {state}"
            for state in ("running", "paused", "pruned")
            if getattr(report, state) or state == "running"
        )
        progress = f"{counts}, {best}"
        bar.update(
            task,
            total=report.n_trials,
            completed=report.complete + report.pruned + report.failed + report.paused,
            description=progress if study.stage is None else _STAGES[study.stage],
        )

    try:
        yield tick
    finally:
        if bar.live.is_started:
            bar.stop()


def validation(epoch: "Epoch") -> str:
    """Return the validation accuracy of an epoch in words."""
    if epoch.val_top1 is None:
        return "not validated"
    return f"validation top-1 {epoch.val_top1:.2f} %"


def live(screen: Callable[[], tuple[Any, bool]], *, every_s: float) -> None:
    """Refresh a screen every so many seconds, until it says it is the last or Ctrl-C."""
    from rich.live import Live

    drawn, last = screen()
    with Live(drawn, console=console(), auto_refresh=False) as shown:
        try:
            while not last:
                time.sleep(every_s)
                drawn, last = screen()
                shown.update(drawn, refresh=True)
        except KeyboardInterrupt:
            return
