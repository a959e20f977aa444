"""Commands for a study: create it, steer it, look at it."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from nbtl_search.cli.options import (
    assignments,
    home_option,
    json_option,
    settings_option,
    storage_option,
)
from nbtl_search.cli.output import DECODING, console, echo_json, late_progress, late_stages, live
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.spec import Fork, StudySpec

# As `nbtl_search.space.regimes.SURVEY`, which help must not wait for.
REGIMES: Final = ("larger-similar", "larger-dissimilar", "smaller-similar", "smaller-dissimilar")


@click.command("create")
@click.option("--dataset", help="dtd, caltech256, cars, aircraft, textures, or a folder of images.")
@click.option(
    "--study",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A study's TOML file instead.",
)
@click.option("--name", help="Of the study; by default the dataset's.")
@click.option("--model", help="A timm model; by default inception_v4.")
@click.option("--weights", help="timm, a .safetensors or .pth file, or a Hugging Face folder.")
@click.option("--root", help="Where a registered dataset's images lie already.")
@click.option("--image-px", type=int, help="Side of the network's input.")
@click.option("--epochs", type=int, help="Epochs of one trial.")
@click.option("--trials", type=int, help="Trials in all.")
@click.option(
    "--start",
    multiple=True,
    type=click.Choice(REGIMES),
    metavar="REGIME",
    help="Also try the survey's starting recipe for a target of this size and similarity to the "
    f"source: {', '.join(REGIMES)}. May be repeated.",
)
@click.option(
    "--advise/--no-advise",
    default=None,
    help="Start from what `diagnose` measured and from finished studies; by default where there "
    "are measures.",
)
@settings_option
@storage_option
@json_option
def create_command(
    *,
    workspace: Workspace,
    dataset: str | None,
    study: Path | None,
    name: str | None,
    start: Sequence[str],
    advise: bool | None,
    settings: Sequence[str],
    as_json: bool,
    **shortcuts: str | int | None,
) -> None:
    """Create a study: check images and weights, and store what is to be searched.

    \b
    nbtl-search create --dataset dtd
    nbtl-search create --dataset ./photos --model mobilenetv2_100 --image-px 224 --trials 24
    nbtl-search create --dataset ./photos --set search.space=extended --start smaller-similar
    """
    from nbtl_search.workspace.drafts import draft

    every = [*assignments(shortcuts), *settings]
    asked = draft(dataset, study=study, name=name, settings=every)
    with late_stages() as tick:
        spec = workspace.studies.store(
            asked,
            start=start,
            advise=advise,
            progress=partial(tick, DECODING),
            checking=partial(tick, "checking methods"),
        )
    if as_json:
        echo_json(spec.plain())
    else:
        _say_created(spec, start, asked=asked)
        _say_next(spec)


def _say_created(spec: "StudySpec", start: Sequence[str], *, asked: "StudySpec") -> None:
    from nbtl_search.ledger.promotion import ladder_of

    facts = spec.facts
    assert facts is not None  # noqa: S101
    n_updates = spec.train.updates_per_epoch(facts.n_train)
    stops = ladder_of(spec, n_updates=n_updates).rungs
    where = f"after epoch {' and '.join(map(str, stops))}" if stops else "never (too few updates)"
    click.echo(
        f"study {spec.name!r}: {spec.budget.n_trials} trials of {spec.train.epochs} epochs, "
        f"space {spec.search.space!r}\n"
        f"  images   {facts.n_train} to train, {facts.n_val} to validate, {facts.n_test} to test, "
        f"{facts.n_classes} classes\n"
        f"  network  {spec.model.name}, {facts.n_blocks} blocks, weights {spec.model.weights}\n"
        f"  training {_training(spec, n_updates * spec.train.epochs)}\n"
        f"  pruning  {where}"
    )
    if spec.budget != asked.budget:
        click.echo(
            f"  budget   stays {spec.budget.describe()}, as the study is there already; to change "
            f"it: nbtl-search extend {spec.name}"
        )
    _say_default(spec, asked)
    kept = [known.dials for known in spec.search.known]  # a name may have become the default's
    left_out = [known.name for known in asked.search.known if known.dials not in kept]
    if "head_start" in spec.search.rows and not facts.fits_head:
        left_out = ["head_start", *left_out]
    if left_out:
        why = (
            f"the classifier of {spec.model.name} is not one linear layer"
            if facts.pretrained
            else "the weights are random"
        )
        click.echo(f"  left out {', '.join(left_out)}: {why}")
    for known in spec.search.known:
        if known.name in {f"survey-{regime}" for regime in start}:
            dials = ", ".join(f"{name} = {value}" for name, value in known.dials.items())
            click.echo(f"  start    {known.name}: {dials} ({known.reason})")
    _say_advice(spec)


def _say_next(spec: "StudySpec") -> None:
    click.echo(f"next: nbtl-search launch {spec.name}")


def _say_default(spec: "StudySpec", asked: "StudySpec") -> None:
    """Say where another recipe than the file's own is the default, as runs are short."""
    dials = spec.search.known[0].dials
    chosen = next(known for known in asked.search.known if known.dials == dials)
    if chosen.name != spec.search.known[0].name:
        limit = f"fewer than {chosen.default_below} updates"
        click.echo(f"  default  the recipe {chosen.name!r}, as runs have {limit}")


def _training(spec: "StudySpec", n_updates: int) -> str:
    strength = spec.augment.strength
    known = isinstance(strength, float)
    augmentation = f"at strength {strength:g} of 1" if known else "as the study says"
    schedule = spec.train.schedule.replace("_", " ")
    return f"{n_updates} updates a trial, schedule {schedule}, augmentation {augmentation}"


def _say_advice(spec: "StudySpec") -> None:
    advice = spec.advice
    if advice is None:
        click.echo("  advice   none (nbtl-search diagnose measures how well the weights fit)")
        return
    if advice.regime == "unknown" and not advice.recipes:
        click.echo(f"  advice   nothing was concluded: {advice.evidence[0]}")
        return
    click.echo(f"  advice   the weights look {advice.regime}; --no-advise leaves this out")
    for recipe in advice.recipes:
        click.echo(f"           tried early: {recipe.name} ({recipe.reason})")
    for dial, prior in advice.prior.items():
        click.echo(f"           more often:  {dial} {prior.low} to {prior.high} ({prior.reason})")
    for line in advice.evidence:
        click.echo(f"           because:     {line}")


@click.command("fork")
@click.argument("study")
@click.argument("new")
@settings_option
@storage_option
@json_option
def fork_command(
    *, workspace: Workspace, study: str, new: str, settings: Sequence[str], as_json: bool
) -> None:
    """Make the study NEW like STUDY with other settings, and keep what can be compared.

    \b
    nbtl-search fork dtd dtd-narrow --set search.rows.lr_high.low=2e-3
    nbtl-search fork dtd dtd-long --set train.epochs=60
    """
    asked = workspace.studies.draft_fork(study, new, settings=settings)
    with late_stages() as tick:
        spec, fork = workspace.studies.fork(
            study,
            new,
            settings=settings,
            progress=partial(tick, DECODING),
            checking=partial(tick, "checking methods"),
        )
    if as_json:
        echo_json({"study": spec.plain(), "fork": fork.plain()})
        return
    _say_created(spec, (), asked=asked)
    _say_fork(fork)
    _say_next(spec)


def _say_fork(fork: "Fork") -> None:
    cost = ", at no cost to the budget" if fork.n_carried else ""
    n_all = fork.n_trials
    click.echo(f"  fork     {fork.n_carried} of {n_all} trials of {fork.source!r} taken over{cost}")
    for reason in fork.why_left_out():
        click.echo(f"           left out: {reason}")
    for recipe in fork.recipes:
        click.echo(f"           tried early: {recipe.name} ({recipe.reason})")


@click.command("prepare")
@click.argument("dataset")
@click.option("--skip-corrupt", is_flag=True, help="Leave damaged images out, and record which.")
@settings_option
@home_option
@json_option
def prepare_command(
    *,
    workspace: Workspace,
    dataset: str,
    skip_corrupt: bool,
    settings: Sequence[str],
    as_json: bool,
) -> None:
    """Decode DATASET (a name or a folder) once, for all workers of this machine.

    \b
    nbtl-search prepare dtd
    nbtl-search prepare ./photos --set data.image_px=224 --skip-corrupt
    """
    with late_progress(DECODING) as progress:
        prepared = workspace.studies.prepare(
            dataset, settings=settings, skip_corrupt=skip_corrupt, progress=progress
        )
    counts = {
        "train": prepared.n_train,
        "val": prepared.n_val,
        "test": prepared.n_test,
        "classes": len(prepared.classes),
        "digest": prepared.digest,
    }
    if as_json:
        echo_json(counts)
    else:
        click.echo("  ".join(f"{key} {value}" for key, value in counts.items()))


def _steer(
    workspace: Workspace, study: str, wish: Literal["pause", "resume", "stop"], answer: str
) -> None:
    workspace.studies.steer(study, wish)
    click.echo(f"study {study!r} {answer}")


@click.command("pause")
@click.argument("study")
@storage_option
def pause_command(*, workspace: Workspace, study: str) -> None:
    """Checkpoint all running trials of STUDY and let its workers wait for `resume`.

    \b
    nbtl-search pause dtd
    """
    _steer(workspace, study, "pause", "pauses with the next heartbeat of its workers")


@click.command("resume")
@click.argument("study")
@storage_option
def resume_command(*, workspace: Workspace, study: str) -> None:
    """Go on with STUDY after `pause` or `stop`; after `stop`, launch workers again.

    \b
    nbtl-search resume dtd
    """
    _steer(workspace, study, "resume", "goes on; workers that ended need a new launch")


@click.command("stop")
@click.argument("study")
@storage_option
def stop_command(*, workspace: Workspace, study: str) -> None:
    """Checkpoint all running trials of STUDY and end its workers; nothing is lost.

    \b
    nbtl-search stop dtd
    """
    _steer(workspace, study, "stop", "stops with the next heartbeat of its workers")


@click.command("extend")
@click.argument("study")
@click.option("--trials", type=click.IntRange(min=1), help="Trials in all.")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of all trials, in all.")
@click.option("--gpu-h", type=click.FloatRange(min=0, min_open=True), help="Hours of all workers.")
@click.option("--deadline", type=click.DateTime(["%Y-%m-%dT%H:%M"]), help="Local time of the end.")
@storage_option
@json_option
def extend_command(
    *,
    workspace: Workspace,
    study: str,
    trials: int | None,
    epochs: int | None,
    gpu_h: float | None,
    deadline: datetime | None,
    as_json: bool,
) -> None:
    """Give STUDY another budget: each limit in all, and those not given stay. Also after its end.

    \b
    nbtl-search extend dtd --trials 60
    nbtl-search extend dtd --deadline 2027-01-31T08:00
    """
    budget = workspace.studies.extend(
        study,
        n_trials=trials,
        epochs=epochs,
        gpu_h=gpu_h,
        deadline=deadline,
    )
    if as_json:
        echo_json(budget.plain())
        return
    click.echo(f"study {study!r} ends at {budget.describe()}; workers that ended need a new launch")


@click.command("cancel")
@click.argument("study")
@click.argument("trial", type=int)
@storage_option
@json_option
def cancel_command(*, workspace: Workspace, study: str, trial: int, as_json: bool) -> None:
    """End TRIAL of STUDY, named by its number; epochs that it has not trained are others' again.

    \b
    nbtl-search cancel dtd 17
    """
    from dataclasses import asdict

    cancelled = workspace.studies.cancel(study, trial)
    if as_json:
        echo_json(asdict(cancelled))
        return
    if cancelled.state == "running":
        answer = (
            "ends with the next heartbeat of its worker; if that is gone, in a minute, when it is "
            "cancelled again or the study runs"
        )
    elif cancelled.value is None:
        answer = "is cancelled; it has no result"
    else:
        best = f"{cancelled.value:.2f} % at epoch {cancelled.best_epoch}"
        answer = f"is cancelled; its best validation top-1 is {best}"
    click.echo(f"trial {trial} of study {study!r} {answer}")


@click.command("delete")
@click.argument("study")
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
def delete_command(*, workspace: Workspace, study: str, yes: bool) -> None:
    """Delete STUDY with all its trials, after asking.

    \b
    nbtl-search delete dtd
    """
    report, trials = workspace.studies.status(study)
    n_workers = len(report.workers)
    if not yes:
        working = f"; {n_workers} workers are at it and will end" if n_workers else ""
        click.confirm(f"delete study {study!r} with {len(trials)} trials{working}?", abort=True)
    workspace.studies.delete(study)
    click.echo(f"study {study!r} is deleted")


@click.command("status")
@click.argument("study")
@click.option("--watch", is_flag=True, help="Stay, and refresh every two seconds.")
@click.option("--all", "show_all", is_flag=True, help="Every trial, however many.")
@storage_option
@json_option
def status_command(
    *,
    workspace: Workspace,
    study: str,
    watch: bool,
    show_all: bool,
    as_json: bool,
) -> None:
    """Show where STUDY stands: its trials, the best against the default, its workers.

    \b
    nbtl-search status dtd
    nbtl-search status dtd --json
    """
    if as_json:
        report, _trials = workspace.studies.status(study)
        echo_json(report.plain())
        return
    from nbtl_search.reports.terminal.status import render

    def screen() -> tuple[object, bool]:
        report, trials = workspace.studies.status(study)
        return render(report, trials, show_all=show_all), report.state == "finished"

    if watch:
        live(screen, every_s=2.0)
    else:
        console().print(screen()[0])


@click.command("list")
@storage_option
@json_option
def list_command(*, workspace: Workspace, as_json: bool) -> None:
    """List all studies of the database.

    \b
    nbtl-search list
    """
    from dataclasses import asdict

    from nbtl_search.reports.terminal.status import render_list

    found = workspace.studies.all()
    if as_json:
        echo_json([asdict(summary) for summary in found])
    else:
        console().print(render_list(found))


@click.command("best")
@click.argument("study")
@click.option("--trial", type=int, help="This trial's recipe instead of the best one's.")
@storage_option
@json_option
def best_command(*, workspace: Workspace, study: str, trial: int | None, as_json: bool) -> None:
    """Print the best recipe of STUDY as TOML, which `train` accepts.

    \b
    nbtl-search best dtd > recipe.toml
    """
    from nbtl_search.spec import write_toml

    recipe, record, found = workspace.studies.best(study, trial=trial)
    if as_json:
        echo_json(
            {
                "trial": record.number,
                "search_top1": record.value,
                "value": None if found is None else found.plain(),
                "recipe": recipe.plain(),
            }
        )
        return
    value = "not ended" if record.value is None else f"validation top-1 {record.value:.2f} %"
    if found is not None:
        value = f"validation top-1 {found.describe()}"
    label = f" ({record.name})" if record.name else ""
    click.echo(f"# study {study}, trial {record.number}{label}: {value}\n{write_toml(recipe)}")


@click.command("dashboard")
@click.argument("study", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="0 for any free one.")
@click.option("--writable", is_flag=True, help="Let the browser edit notes, and nothing else.")
@storage_option
def dashboard_command(
    *,
    workspace: Workspace,
    study: str | None,
    host: str,
    port: int,
    writable: bool,
) -> None:
    """Show all studies in a browser, until Ctrl-C. Nothing can be changed there.

    \b
    nbtl-search dashboard
    nbtl-search dashboard dtd --port 9000
    """
    workspace.studies.dashboard(
        study,
        host=host,
        port=port,
        writable=writable,
        ready=lambda url: click.echo(f"dashboard: {url}  (Ctrl-C to end)"),
    )
