"""The tables of a report: of the search, the final runs, the cost, the paper and the diagnosis."""

from collections.abc import Sequence

from nbtl_search import space
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.reports import ablation as ablations
from nbtl_search.reports.content import Content
from nbtl_search.reports.cost import spending
from nbtl_search.reports.importance import NAMES
from nbtl_search.reports.prose import describe_candidate, describe_recipe
from nbtl_search.reports.table import (
    Row,
    Table,
    count,
    interval,
    number,
    remark,
    spread,
    text,
)
from nbtl_search.spec import TITLES, Dials
from nbtl_search.spec.verdict import Estimate, Interval


def all_tables(content: Content) -> tuple[Table, ...]:
    """Return every table of the report, in its order; those without rows are left out."""
    made = (
        final(content),
        contenders(content),
        searched(content),
        trials(content),
        importance(content),
        ablation(content),
        cost(content),
        audits(content),
        runs(content),
        readings(content),
        paper(content),
        measures(content),
    )
    return tuple(table for table in made if table.rows)


def searched(content: Content) -> Table:
    """Return the rows of the search space, and what is held fixed."""
    rows: list[Row] = [
        {
            "dial": row.name,
            "meaning": NAMES.get(row.name, row.name),
            "values": space.describe(row.domain),
            "only_if": str(row.when or ""),
        }
        for row in content.searched.rows
    ]
    rows += [
        {
            "dial": name,
            "meaning": NAMES.get(name, name),
            "values": f"fixed: {value}",
            "only_if": "",
        }
        for name, value in content.searched.fixed.items()
    ]
    columns = (
        text("dial", "dial"),
        text("meaning", "meaning"),
        text("values", "values"),
        text("only if", "only_if"),
    )
    return Table(name="space", title="The search space", rows=tuple(rows), columns=columns)


def trials(content: Content, only: Sequence[TrialRecord] | None = None) -> Table:
    """Return the trials of the search, all of them or these."""
    written = {name for trial in content.trials for name in trial.dials.model_dump()}
    dials = [name for name in Dials.model_fields if name in written]
    rows: list[Row] = [
        {
            "trial": trial.number,
            "name": trial.name,
            "state": trial.state,
            "top1": trial.value,
            "best_epoch": trial.best_epoch,
            "n_epochs": trial.n_epochs,
            "seconds": round(trial.seconds, 1),
            "attempts": trial.n_attempts,
            "cause": trial.cause,
            "message": trial.message,
            **{name: getattr(trial.dials, name) for name in dials},
            "settings": describe_recipe(trial.dials, n_blocks=content.facts.n_blocks),
        }
        for trial in (content.trials if only is None else only)
    ]
    columns = (
        count("trial", "trial"),
        text("name", "name"),
        text("state", "state"),
        number("validation top-1", "top1"),
        count("epochs", "n_epochs"),
        remark("settings", "settings"),
    )
    return Table(name="trials", title="Trials of the search", rows=tuple(rows), columns=columns)


def importance(content: Content) -> Table:
    """Return the shares of the dials."""
    rows: tuple[Row, ...] = tuple(
        {"dial": name, "meaning": NAMES.get(name, name), "share": share}
        for name, share in content.importances.shares.items()
    )
    columns = (text("dial", "dial"), text("meaning", "meaning"), number("share", "share", ".1%"))
    return Table(name="importances", title="Importance of the dials", rows=rows, columns=columns)


def ablation(content: Content) -> Table:
    """Return what each group of the recommended recipe's dials is worth."""
    if content.ablation is None:
        return Table(name="ablation", title="Ablation", rows=(), columns=())
    return ablations.table(content.ablation)


def cost(content: Content) -> Table:
    """Return what the search and the final runs have cost."""
    rows: tuple[Row, ...] = tuple(
        {
            "part": part.name,
            "runs": part.n_runs,
            "epochs": part.epochs,
            "slot_seconds": round(part.seconds, 1),
            "retried": part.n_retried,
        }
        for part in spending(content.trials, content.verdict, content.ablation)
    )
    columns = (
        text("part", "part"),
        count("runs", "runs"),
        count("epochs", "epochs"),
        number("slot-seconds", "slot_seconds", ",.0f"),
        count("of them retried", "retried"),
    )
    return Table(name="cost", title="Cost", rows=rows, columns=columns)


def final(content: Content) -> Table:
    """Return the default, the winner and the recipes it is made of on the test images."""
    verdict = content.verdict
    entries = () if verdict is None else verdict.entries
    rows: list[Row] = []
    for entry in entries:
        is_winner = verdict is not None and entry == verdict.winning
        gain = verdict.gain if verdict and is_winner and len(entries) > 1 else None
        rows.append(
            {
                "recipe": entry.name,
                "trial": entry.trial,
                "averaged": _listed(entry.averaged),
                "settings": describe_candidate(entry, n_blocks=content.facts.n_blocks),
                "n_seeds": entry.single.n,
                "single_mean": entry.single.mean,
                "single_std": entry.single.std,
                "ten_crop_mean": entry.ten_crop.mean,
                "ten_crop_std": entry.ten_crop.std,
                "ensemble": entry.ensemble_top1,
                **_interval("gain", gain),
                "is_winner": is_winner,
            }
        )
    columns = (
        text("recipe", "recipe"),
        count("runs", "n_seeds"),
        spread("test top-1, single crop", "single"),
        spread("ten crops", "ten_crop"),
        number("ensemble, ten crops", "ensemble"),
        interval("gain (95 % interval)", "gain", sign="+"),
        remark("settings", "settings"),
    )
    title = "Test images: top-1 in percent, mean ± standard deviation over seeds"
    return Table(name="final", title=title, rows=tuple(rows), columns=columns)


def contenders(content: Content) -> Table:
    """Return the candidates of the confirm stage, the default first."""
    verdict = content.verdict
    rows: list[Row] = []
    for one in () if verdict is None else verdict.contenders:
        is_tied = one.is_tied_with_winner and verdict is not None and verdict.winner is not None
        rows.append(
            {
                "recipe": one.name,
                "trial": one.trial,
                "averaged": _listed(one.averaged),
                "settings": describe_candidate(one, n_blocks=content.facts.n_blocks),
                "search_top1": one.search_top1,
                "n_seeds": one.confirmed.n,
                "confirmed_mean": one.confirmed.mean,
                "confirmed_std": one.confirmed.std,
                **_interval("value", one.value),
                **_interval("gain", one.gain),
                "mark": "winner" if one.is_winner else "tie with the winner" if is_tied else "",
            }
        )
    columns = (
        text("recipe", "recipe"),
        number("in the search", "search_top1"),
        count("runs", "n_seeds"),
        spread("confirmed", "confirmed"),
        interval("value (95 % interval)", "value"),
        interval("gain (95 % interval)", "gain", sign="+"),
        text("", "mark"),
        remark("settings", "settings"),
    )
    title = "Candidates on the validation images, after the last epoch, over new seeds"
    return Table(name="contenders", title=title, rows=tuple(rows), columns=columns)


def runs(content: Content) -> Table:
    """Return every final run."""
    rows: list[Row] = [
        {
            "run": run.number,
            "stage": run.stage,
            "trial": run.candidate,
            "averaged": _listed(run.averaged),
            "trials": _listed(run.trials),
            "seed": run.seed,
            "state": run.state,
            "n_epochs": run.n_epochs,
            "seconds": round(run.seconds, 1),
            "attempts": run.n_attempts,
            "val_top1": run.val_top1,
            "test_top1": None if run.test is None else run.test.top1,
            "test_top5": None if run.test is None else run.test.top5,
            "ten_crop_top1": None if run.test is None else run.test.ten_crop_top1,
            "ten_crop_top5": None if run.test is None else run.test.ten_crop_top5,
            "weights_sha256": None if run.weights is None else run.weights.digest,
        }
        for run in (() if content.verdict is None else content.verdict.runs)
    ]
    columns = (
        count("run", "run"),
        text("stage", "stage"),
        text("trial", "trials"),
        count("seed", "seed"),
        text("state", "state"),
        number("validation top-1", "val_top1"),
        number("test top-1", "test_top1"),
        number("ten crops", "ten_crop_top1"),
        number("seconds", "seconds", ",.0f"),
    )
    return Table(name="runs", title="Final runs", rows=tuple(rows), columns=columns)


def readings(content: Content) -> Table:
    """Return the times the test images were opened."""
    rows: tuple[Row, ...] = tuple(
        {"round": one.round, "opened_at": one.opened_at.isoformat(), "reason": one.reason}
        for one in (() if content.verdict is None else content.verdict.readings)
    )
    columns = (count("round", "round"), text("opened", "opened_at"), text("reason", "reason"))
    title = "Readings of the test images"
    return Table(name="readings", title=title, rows=rows, columns=columns)


def paper(content: Content, *, whole: bool = True) -> Table:
    """Return the paper's figures for this dataset, and ours where we have the same.

    Args:
        content: of the report.
        whole: all of tables 2-6; else what the final runs compare with, tables 2 and 6.
    """
    rows: list[Row] = [
        {
            "table": row.table,
            "row": row.label,
            "setting": row.setting,
            "paper_mean": row.top1,
            "paper_std": row.std,
            **_ours(content, row.label if row.table in {2, 6} else ""),
            "note": "; ".join(row.suspect),
        }
        for row in content.paper
        if whole or row.table in {2, 6}
    ]
    columns = (
        count("table", "table"),
        text("row", "row"),
        spread("paper", "paper"),
        spread("this study", "ours"),
        text("setting of the paper", "setting"),
        remark("doubt", "note"),
    )
    title = "Test top-1 in percent: the paper, and this study"
    return Table(name="paper", title=title, rows=tuple(rows), columns=columns)


def audits(content: Content) -> Table:
    """Return what early stopping saved, and what became of the trials that were audited."""
    rows: list[Row] = []
    for where, one in zip(("this study", "all studies"), content.audits, strict=True):
        found = one.probability() or (None, None, None)
        rows.append(
            {
                "studies": where,
                "epochs_saved": one.epochs_saved,
                "share_saved": 100 * one.saved,
                "n_stopped": one.n_stopped,
                "n_best": one.n_best,
                **{
                    key: None if value is None else 100 * value
                    for key, value in zip(
                        ("probability", "probability_low", "probability_high"), found, strict=True
                    )
                },
            }
        )
    columns = (
        text("", "studies"),
        count("epochs saved", "epochs_saved"),
        number("% of all", "share_saved", ".0f"),
        count("audited", "n_stopped"),
        count("were the best", "n_best"),
        interval("probability in % (95 % interval)", "probability"),
    )
    title = "Early stopping, and trials run to their end although a rung would have stopped them"
    is_used = any(one.n_stopped or one.epochs_saved for one in content.audits)
    return Table(name="audit", title=title, rows=tuple(rows) if is_used else (), columns=columns)


def measures(content: Content) -> Table:
    """Return the measures of the latest diagnosis."""
    diagnosis = content.diagnosis
    rows: list[Row] = []
    for measure in () if diagnosis is None else diagnosis.measures:
        settings = ", ".join(f"{key} {value}" for key, value in measure.settings.items())
        rows.append(
            {
                "measure": measure.name,
                "title": TITLES.get(measure.name, measure.name),
                "value": measure.value,
                "null": measure.null,
                "remark": measure.reason or settings,
            }
        )
    return Table(
        name="measures",
        title="How well the weights fit the images",
        rows=tuple(rows),
        columns=(
            text("measure", "title"),
            number("value", "value", ".4g"),
            number("without information", "null", ".4g"),
            remark("how, or why not", "remark"),
        ),
    )


def _ours(content: Content, label: str) -> Row:
    """Return our figure that answers to a row of the paper's table 2 or 6."""
    rows = final(content).rows
    default, winner = (rows[0], rows[-1]) if rows else (None, None)
    found = {"default": default, "optimal": winner}.get(label)
    if label == "ensemble" and winner is not None:
        return {"ours_mean": winner["ensemble"], "ours_std": None}
    if found is None:
        return {"ours_mean": None, "ours_std": None}
    return {"ours_mean": found["single_mean"], "ours_std": found["single_std"]}


def _listed(trials: Sequence[int]) -> str:
    """Return the numbers of trials; '' where there are none, as of what is no average."""
    return ", ".join(map(str, trials))


def _interval(key: str, found: Interval | Estimate | None) -> Row:
    if found is None:
        return dict.fromkeys((key, f"{key}_low", f"{key}_high"))
    return {key: found.mean, f"{key}_low": found.low, f"{key}_high": found.high}
