"""Commands for this machine: checks and costs before a search, logs, leftovers, notifications."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nbtl_search import escaping
from nbtl_search.cli.options import home_option, json_option, storage_option
from nbtl_search.cli.output import echo_json, waiting
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.study.cost_estimate import CostEstimate
    from nbtl_search.workspace.maintenance import LogLine

_MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


@click.command("doctor")
@click.argument("study", required=False)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="How many are planned, against the database's limit of connections.",
)
@storage_option
@json_option
def doctor_command(*, workspace: Workspace, study: str | None, workers: int, as_json: bool) -> None:
    """Check this machine and the database, with STUDY also its device and weights.

    Exits with 1 where something must be fixed first.

    \b
    nbtl-search doctor
    nbtl-search doctor dtd --workers 64
    """
    with waiting("checking"):
        found = workspace.machine.doctor(study, workers=workers)
    if as_json:
        echo_json([check.plain() for check in found])
    else:
        for check in found:
            advice = f"; {check.advice}" if check.advice else ""
            click.echo(f"{_MARKS[check.state]}  {check.name:14} {check.says}{advice}")
    if any(check.state == "problem" for check in found):
        raise SystemExit(1)


@click.command("preflight")
@click.argument("study")
@click.option("--workers", type=click.IntRange(min=1), help="By default as `launch` would start.")
@click.option("--packed", is_flag=True, help="Also measure several trainings that share a GPU.")
@storage_option
@json_option
def preflight_command(
    *,
    workspace: Workspace,
    study: str,
    workers: int | None,
    packed: bool,
    as_json: bool,
) -> None:
    """Train a few batches of STUDY's default recipe, and say what the study will cost here.

    \b
    nbtl-search preflight dtd
    nbtl-search preflight dtd --packed
    """
    from dataclasses import asdict

    with waiting("training a few batches"):
        found = workspace.machine.preflight(study, workers=workers)
    rates = workspace.machine.packed(study) if packed else iter(())
    if as_json:
        plain = asdict(found) | {"speed": found.speed.plain()}
        echo_json(plain | {"packed": [{"slots": n, "images_per_s": rate} for n, rate in rates]})
        return
    say_cost_estimate(found)
    say_packed(rates)


def say_cost_estimate(found: "CostEstimate") -> None:
    """Print the cost estimate of a study."""
    speed = found.speed
    slot = "GPU-hours" if speed.device != "cpu" else "slot-hours"
    click.echo(
        f"speed    {1000 * speed.update_s:.0f} ms an update of {speed.batch_size} images "
        f"({1000 * speed.update_low_s:.0f} to {1000 * speed.update_high_s:.0f}, "
        f"n = {speed.n_measured}), {speed.precision} on {speed.device}\n"
        f"memory   {speed.peak_mb:.0f} of {speed.device_mb:.0f} MB; "
        f"{_slots(found)}checkpoints up to {found.checkpoints_gb:.1f} GB\n"
        f"epochs   {found.epochs[0]} to {found.epochs[1]} "
        f"(all stopped after epoch {found.first_rung}, none stopped)\n"
        f"cost     {found.slot_h[0]:.2g} to {found.slot_h[1]:.2g} {slot}, "
        f"{found.hours[0]:.2g} to {found.hours[1]:.2g} h with {found.n_workers} workers"
    )
    for warning in found.warnings:
        click.echo(f"warning  {warning}")


def say_packed(rates: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Print what several trainings on one device give together, as it is measured."""
    found = []
    for n, rate in rates:
        click.echo(f"packed   {n} at once: {rate:.1f} images/s")
        found.append((n, rate))
    return found


def _slots(found: "CostEstimate") -> str:
    if found.speed.device == "cpu":
        return ""
    return f"room for {found.slots_per_gpu} such trainings; "


@click.command("notify")
@click.argument("study")
@click.option(
    "--webhook-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="NBTL_WEBHOOK_FILE",
    show_envvar=True,
    required=True,
    help="TOML file of mode 0600 with `url` and `secret`.",
)
@click.option(
    "--every-s",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    help="Look again after so long.",
)
@click.option("--once", is_flag=True, help="Look once, for cron.")
@click.option("--test", is_flag=True, help="Send a test message, and nothing else.")
@storage_option
def notify_command(
    *,
    workspace: Workspace,
    study: str,
    webhook_file: Path,
    every_s: float,
    once: bool,
    test: bool,
) -> None:
    """Send a signed message when STUDY has finished, stalls, or a trial fails. Stays until then.

    Any number of these may run: each message is sent once.

    \b
    NBTL_WEBHOOK_FILE=~/.config/nbtl-search/webhook.toml nbtl-search notify dtd
    """
    if test:
        from nbtl_search.workspace.notifications import send_test

        send_test(webhook_file)
        click.echo("the test message was accepted")
        return
    workspace.notifications.send(
        study,
        webhook_file,
        every_s=None if once else every_s,
        on_sent=lambda notification: click.echo(f"sent: {notification.text}"),
    )


@click.command("clean")
@click.argument("study", required=False)
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@click.option(
    "--older-than",
    "older_than_days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Age from which logs of studies without live workers go.",
)
@storage_option
@json_option
def clean_command(
    *,
    workspace: Workspace,
    study: str | None,
    dry_run: bool,
    older_than_days: float,
    as_json: bool,
) -> None:
    """Remove checkpoints of trials that ended, those of deleted studies, and old logs.

    What an open trial needs, weights of final runs, decoded images and downloads stay.

    \b
    nbtl-search clean --dry-run
    nbtl-search clean dtd
    """
    found = workspace.leftovers.remove(study, older_than_days=older_than_days, dry_run=dry_run)
    total = sum(item.n_bytes for item in found)
    if as_json:
        rows = [{"path": item.path, "why": item.why, "bytes": item.n_bytes} for item in found]
        echo_json({"removed": not dry_run, "bytes": total, "items": rows})
        return
    for item in found:
        click.echo(f"{item.n_bytes / 1e6:10.1f} MB  {item.why}: {printable(str(item.path))}")
    verb = "would be" if dry_run else "were"
    click.echo(f"{total / 1e6:.1f} MB in {len(found)} files and folders {verb} removed")


@click.command("logs")
@click.argument("study")
@click.option("--worker", help="Only files with this in their name: a worker, a slot, a job.")
@click.option(
    "--lines",
    "n_lines",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Of each file.",
)
@click.option("--follow", is_flag=True, help="Stay, and show what is added, until Ctrl-C.")
@home_option
@json_option
def logs_command(
    *,
    workspace: Workspace,
    study: str,
    worker: str | None,
    n_lines: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Show what the workers of STUDY wrote, on this machine or on the cluster's shared disk.

    \b
    nbtl-search logs dtd
    nbtl-search logs dtd --worker slot-0 --follow
    """
    found = workspace.logs.last(study, worker=worker, n_lines=n_lines)
    if as_json:
        echo_json([{"file": line.file, "text": line.text} for line in found])
        return
    folder = workspace.logs_folder(study)
    for line in found:
        _say(line, folder)
    click.echo(f"in {folder}", err=True)
    if follow:
        try:
            for line in workspace.logs.follow(study, worker=worker):
                _say(line, folder)
        except KeyboardInterrupt:
            return


def _say(line: "LogLine", folder: Path) -> None:
    click.echo(f"{line.file.relative_to(folder)}: {printable(line.text)}")


def printable(text: str) -> str:
    """Return a line of a log, which may hold anything, with its tabs as they are."""
    return "\t".join(map(escaping.terminal, text.split("\t")))
