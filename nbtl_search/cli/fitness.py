"""Commands to run before a search: is all well here, and what will it cost?"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nbtl_search.cli.options import json_option, storage_option
from nbtl_search.cli.output import echo_json, waiting

if TYPE_CHECKING:
    from nbtl_search.study.price import Price

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
def doctor_command(
    *, study: str | None, workers: int, home: Path | None, storage: str | None, as_json: bool
) -> None:
    """Check this machine and the database, with STUDY also its device and weights.

    Exits with 1 where something must be mended first.

    \b
    nbtl-search doctor
    nbtl-search doctor dtd --workers 64
    """
    from nbtl_search import api

    with waiting("looking"):
        found = api.doctor(study, workers=workers, home=home, storage=storage)
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
    study: str,
    workers: int | None,
    packed: bool,
    home: Path | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Train a few batches of STUDY's default recipe, and say what the study will cost here.

    \b
    nbtl-search preflight dtd
    nbtl-search preflight dtd --packed
    """
    from dataclasses import asdict

    from nbtl_search import api

    with waiting("training a few batches"):
        found = api.preflight(study, workers=workers, home=home, storage=storage)
    rates = api.packed(study, home=home, storage=storage) if packed else iter(())
    if as_json:
        plain = asdict(found) | {"speed": found.speed.plain()}
        echo_json(plain | {"packed": [{"slots": n, "images_per_s": rate} for n, rate in rates]})
        return
    say_price(found)
    say_packed(rates)


def say_price(found: "Price") -> None:
    """Print what a study costs."""
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
        f"price    {found.slot_h[0]:.2g} to {found.slot_h[1]:.2g} {slot}, "
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


def _slots(found: "Price") -> str:
    if found.speed.device == "cpu":
        return ""
    return f"room for {found.slots_per_gpu} such trainings; "
