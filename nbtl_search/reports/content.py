"""Everything a report says, read once from the database: what follows are pure functions of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from nbtl_search import space
from nbtl_search.reports.drawing.importance import Importances, importances
from nbtl_search.reports.provenance import Provenance, provenance
from nbtl_search.reports.standing import best_of, default_of
from nbtl_search.space import Space
from nbtl_search.spec import Diagnosis, Epoch, Facts, StudySpec
from nbtl_search.spec.paper import KEYS, PaperRow, paper_rows
from nbtl_search.study import diagnoses, records
from nbtl_search.study.records import Totals, TrialRecord
from nbtl_search.study.store import Study
from nbtl_search.study.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a report is made of. Accuracies are percentages."""

    name: str
    spec: StudySpec
    facts: Facts
    searched: Space
    totals: Totals
    trials: tuple[TrialRecord, ...]
    curves: Mapping[int, Sequence[Epoch]]
    """By the trial's number."""
    verdict: Verdict | None
    """None where the study was never finalised."""
    diagnosis: Diagnosis | None
    """The latest of these images and weights; None where there is none."""
    importances: Importances
    provenance: Provenance
    paper: tuple[PaperRow, ...]
    """The rows of the paper's tables 2-6 for this dataset; none where it has no such dataset."""
    made_at: datetime

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial with the highest validation accuracy."""
        return best_of(self.trials)

    @property
    def default(self) -> TrialRecord | None:
        """The trial of the default recipe."""
        return default_of(self.trials)


def gather(study: Study, verdict: Verdict | None) -> Content:
    """Read what a report of this study says.

    Args:
        study: to report on.
        verdict: of its latest finalisation.

    Raises:
        StorageError: the database refuses or does not answer.
    """
    engine, dataset = study.storage.engine, study.spec.data.dataset
    trials = records.trials(engine, study.id)
    searched = space.build_for(study.spec.search, study.facts)
    n_workers = len(records.workers(engine, study.id))
    return Content(
        name=study.name,
        spec=study.spec,
        facts=study.facts,
        searched=searched,
        totals=records.totals(engine, study.id, n_workers=n_workers),
        trials=tuple(trials),
        curves=records.curves(engine, study.id),
        verdict=verdict,
        diagnosis=diagnoses.latest(study.storage, study.spec),
        importances=importances(trials, searched),
        provenance=provenance(study),
        paper=paper_rows(dataset) if dataset in KEYS else (),
        made_at=datetime.now(UTC),
    )
