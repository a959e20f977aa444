"""From a dataset or a TOML file to a specification, without looking at data or weights.

Make a study: check its data and weights, and store it.

Look at studies, and steer them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from nbtl_search import space
from nbtl_search.advice import advise as advise_on
from nbtl_search.errors import NbtlError, SpecError, StudyExistsError, StudyNotFoundError
from nbtl_search.launchers import local, slurm
from nbtl_search.ledger import jobs, records
from nbtl_search.ledger.database import Storage, create_or_upgrade
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.ledger.lifecycle import Desired
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.reports.comparison import best_of
from nbtl_search.reports.terminal.status import Queue, StatusReport, status_of
from nbtl_search.space.survey import SURVEY, starting_recipe
from nbtl_search.spec import Advised, Diagnosis, Recipe, StudySpec, read_toml, with_settings
from nbtl_search.spec.study import shipped_studies, shipped_study
from nbtl_search.study import diagnoses, finals, store, warm_start
from nbtl_search.study.store import Study, StudySummary
from nbtl_search.workspace.workspace import default_home, opened, opened_study

if TYPE_CHECKING:
    from nbtl_search.data.prepared import Prepared


def draft(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
) -> StudySpec:
    """Return the specification that `create` would store, without looking at data or weights.

    Args:
        dataset: a shipped study's name, or a folder of images.
        study: a TOML file instead.
        name: of the study; by default that of the dataset or the file's.
        settings: `dotted.key=value`, applied last.

    Raises:
        SpecError: neither or both are given, or something in them is not valid.
    """
    if (dataset is None) == (study is None):
        message = "create takes either --dataset or --study, got both or neither"
        raise SpecError(message)
    plain = read_toml(study) if study is not None else _of_dataset(str(dataset))
    return drafted(plain, name=name, settings=settings)


def drafted(
    plain: dict[str, Any], *, name: str | None = None, settings: Sequence[str] = ()
) -> StudySpec:
    """Return the specification in this plain data, with its name and settings changed.

    Raises:
        SpecError: something in them is not valid.
    """
    if name is not None:
        plain = plain | {"name": name}
    return StudySpec.parse(_absolute(with_settings(plain, settings)))


def with_threads(spec: StudySpec) -> StudySpec:
    """Return it with the threads of a CPU slot fixed: they are part of the result, bit for bit."""
    if spec.train.n_threads is not None or local.gpus():
        return spec
    return spec.replace(train=spec.train.replace(n_threads=1))


def with_starts(spec: StudySpec, regimes: Sequence[str]) -> StudySpec:
    """Return it with the survey's starting recipes of these regimes behind its known recipes.

    Where the facts are known and the space searches `decay_updates`, they have the regime's own
    decay, counted in the study's updates; elsewhere the rates follow the schedule of [train].

    Args:
        spec: the study.
        regimes: of `nbtl_search.space.survey.SURVEY`; the same one twice counts once.

    Raises:
        SpecError: there is no such regime, or the study knows a recipe of its name already.
    """
    added = []
    for name in dict.fromkeys(regimes):
        regime = next((known for known in SURVEY if known == name), None)
        if regime is None:
            message = f"start must be one of {', '.join(SURVEY)}; got {name!r}; choose one of them"
            raise SpecError(message)
        added.append(starting_recipe(regime, n_updates=_decaying_updates(spec)))
    taken = {known.name for known in spec.search.known} & {recipe.name for recipe in added}
    if taken:
        message = (
            f"known recipes have different names, and the study has {', '.join(sorted(taken))} "
            "already; leave its start out"
        )
        raise SpecError(message)
    return spec.replace(search=spec.search.replace(known=(*spec.search.known, *added)))


def _decaying_updates(spec: StudySpec) -> int | None:
    """Return the updates of a run, where their number is known and decay in them is searched."""
    facts = spec.facts
    if facts is None:
        return None
    if space.build_for(spec.search, facts).row("decay_updates") is None:
        return None
    return spec.train.updates_per_epoch(facts.n_train) * spec.train.epochs


def _of_dataset(dataset: str) -> dict[str, Any]:
    """Return the shipped study of this name, or the one for folders with this folder in it."""
    folder = Path(dataset).expanduser()
    if dataset in shipped_studies() and dataset != "folder":
        return shipped_study(dataset)
    if not folder.is_dir():
        names = ", ".join(known for known in shipped_studies() if known != "folder")
        message = f"--dataset must be one of {names}, or a folder of images; got {dataset!r}"
        raise SpecError(message)
    plain = shipped_study("folder")
    plain["data"]["dataset"] = str(folder)
    plain["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "folder"
    return plain


def _absolute(plain: dict[str, Any]) -> dict[str, Any]:
    """Make the paths of a specification absolute, since workers start in other folders."""
    places = (("data", "dataset"), ("data", "root"), ("model", "weights"))
    for table, key in places:
        value = plain.get(table, {}).get(key)
        if isinstance(value, str) and Path(value).expanduser().exists() and _is_path(table, value):
            plain[table][key] = str(Path(value).expanduser().resolve())
    return plain


def _is_path(table: str, value: str) -> bool:
    """Tell a path from a name that a file of the current folder happens to have."""
    names = {"timm", "shipped", "random"} if table == "model" else set(shipped_studies())
    return value not in names


Progress = Callable[[int, int], None]


def create(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
    start: Sequence[str] = (),
    advise: bool | None = None,
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> StudySpec:
    """Check data and weights, and store a new study; the same one again changes nothing.

    Args:
        dataset: a shipped study's name, or a folder of images.
        study: a TOML file instead.
        name: of the study; by default that of the dataset or the file's.
        settings: `dotted.key=value`, applied last.
        start: regimes of the survey whose starting recipes are tried after the known ones:
            larger-similar, larger-dissimilar, smaller-similar, smaller-dissimilar.
        advise: start from what `diagnose` measured and from finished studies; by default where
            measures of these images and weights exist.
        home: folder for data, weights, checkpoints and the embedded database.
        storage: URL of the database; by default the embedded one.
        progress: is told how many images are decoded, and of how many.
        checking: is told how many methods were tried on the weights, and of how many.

    Raises:
        SpecError: the specification is not valid, or advice is wanted and nothing was measured.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has another specification.
        StorageError: the database refuses.
    """
    spec = draft(dataset, study=study, name=name, settings=settings)
    return store_draft(
        spec,
        start=start,
        advise=advise,
        home=home or default_home(),
        storage=storage,
        progress=progress,
        checking=checking,
    )


def store_draft(
    spec: StudySpec,
    *,
    start: Sequence[str] = (),
    advise: bool | None = None,
    home: Path,
    storage: str | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> StudySpec:
    """Check the data and weights of a drafted study, and store it; again, it changes nothing.

    Raises:
        SpecError: the specification does not suit the data or the network, or advice is wanted
            and nothing was measured.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has another specification.
        StorageError: the database refuses.
    """
    from nbtl_search.training.probe import probe

    spec = with_threads(spec)
    with_starts(spec, start)  # what cannot be started from is refused before data are looked at
    facts = probe(spec, home=home, progress=progress, checking=checking)
    spec = with_starts(spec.replace(facts=facts), start)
    with opened(storage, home, checked=False) as database:
        create_or_upgrade(database)
        diagnosis = diagnoses.latest(database, spec)
        if diagnosis is None and advise:
            message = (
                f"advice needs measures of {spec.data.dataset!r} with these weights at "
                f"{spec.data.image_px} px, got none; run nbtl-search diagnose with the same options"
            )
            raise SpecError(message)
        advice = None
        if diagnosis is not None and advise is not False:
            advice = _advice(database, spec, diagnosis)
        study = store.create(database, spec.replace(advice=advice))
        _check_advice(study, advise=advise)
        if diagnosis is not None:
            diagnoses.show(study, diagnosis)
        return study.spec


def _check_advice(study: Study, *, advise: bool | None) -> None:
    """Refuse a wish about advice that an existing study does not fulfil."""
    has = study.spec.advice is not None
    if advise is not None and advise != has:
        kind = "with" if has else "without"
        message = (
            f"study {study.name!r} must be new for this wish about advice, and it exists {kind} "
            "advice; give another name, or delete it"
        )
        raise StudyExistsError(message)


def _advice(database: Storage, spec: StudySpec, diagnosis: Diagnosis) -> Advised:
    assert spec.facts is not None  # noqa: S101
    return advise_on(
        diagnosis,
        space=space.build_for(spec.search, spec.facts),
        known=spec.search.known,
        n_trials=spec.budget.n_trials,
        remembered=warm_start.remember(database, spec),
    )


def prepare(
    dataset: str,
    *,
    settings: Sequence[str] = (),
    skip_corrupt: bool = False,
    home: Path | None = None,
    progress: Progress | None = None,
) -> "Prepared":
    """Decode a dataset once, for every worker of this machine.

    Raises:
        DataError: the images cannot be had, or some are damaged and `skip_corrupt` is False.
    """
    spec = draft(dataset, settings=settings)
    from nbtl_search.data.prepared import prepare as decode

    return decode(
        spec.data, home=home or default_home(), skip_corrupt=skip_corrupt, progress=progress
    )


Wish = Literal["pause", "resume", "stop"]

_DESIRED: Final[Mapping[Wish, Desired]] = {
    "pause": "pause",
    "resume": "run",
    "stop": "stop",
}


def status(
    name: str, *, home: Path | None = None, storage: str | None = None
) -> tuple[StatusReport, list[TrialRecord]]:
    """Return where the study stands, and its trials.

    Raises:
        StudyNotFoundError: no such study.
    """
    with opened_study(name, storage, home or default_home()) as study:
        trials = records.trials(study.storage.engine, study.id)
        return replace(status_of(study, trials), queue=_queue(study)), trials


def _queue(study: Study) -> Queue | None:
    """Ask the cluster's queue, where jobs were submitted and it can be asked from here."""
    if not jobs.submitted(study.storage.engine, study.id) or not slurm.is_here():
        return None
    try:
        tasks = slurm.tasks(slurm.job_name(study.name, study.uid))
    except NbtlError:
        return {"tasks": None}
    return {"tasks": [asdict(task) for task in tasks]}


def studies(*, home: Path | None = None, storage: str | None = None) -> list[StudySummary]:
    """Return all studies of the database."""
    with opened(storage, home or default_home()) as database:
        return store.names(database)


def steer(name: str, wish: Wish, *, home: Path | None = None, storage: str | None = None) -> None:
    """Pause, resume or stop a study, or the final runs that it is at, with the next heartbeat.

    Raises:
        StudyNotFoundError: no such study.
    """
    with opened_study(name, storage, home or default_home()) as study:
        at_work = finals.open_stage(study) or study
        Ledger(study.storage.engine, at_work.id).want(_DESIRED[wish])


def delete(name: str, *, home: Path | None = None, storage: str | None = None) -> None:
    """Delete a study with all its trials.

    Raises:
        StudyNotFoundError: no such study.
    """
    with opened(storage, home or default_home()) as database:
        store.delete(database, name)


def best(
    name: str,
    *,
    trial: int | None = None,
    home: Path | None = None,
    storage: str | None = None,
) -> tuple[Recipe, TrialRecord]:
    """Return the recipe of the best trial that ran to its end, or of the trial with this number.

    Raises:
        StudyNotFoundError: no such study, or no such trial, or none has ended yet.
    """
    with opened_study(name, storage, home or default_home()) as study:
        trials = records.trials(study.storage.engine, study.id)
        if trial is None:
            record = best_of(trials)
        else:
            record = next((record for record in trials if record.number == trial), None)
        if record is None:
            which = "trial that ran to its end" if trial is None else f"trial {trial}"
            message = f"the study {name!r} has no {which} yet; see: nbtl-search status {name}"
            raise StudyNotFoundError(message)
        recipe = records.recipe(study.storage.engine, study.id, record.number)
    assert recipe is not None, "a record has its recipe"  # noqa: S101
    return recipe, record


def dashboard(
    study: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    writable: bool = False,
    home: Path | None = None,
    storage: str | None = None,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve the dashboard until SIGINT or SIGTERM.

    Args:
        study: whose page `ready` is told; by default the list of all.
        host: address to listen on.
        port: to listen on; 0 for any free one.
        writable: whether notes may be edited there; nothing else ever may.
        home: see above.
        storage: see above.
        ready: called with the address once it answers.

    Raises:
        StudyNotFoundError: no such study.
    """
    from nbtl_search.reports.dashboard.server import (  # a web application others never need
        page,
        serve,
    )

    with opened(storage, home or default_home()) as database:
        place = "" if study is None else page(store.open_study(database, study).id)
        serve(
            database,
            host=host,
            port=port,
            writable=writable,
            ready=lambda url: ready(url + place),
        )
