"""Content of a report: every value it needs, read from the database, and its provenance.

What follows of it are pure functions. Nothing here imports torch.
"""

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
from sqlalchemy import func, or_, select

from nbtl_search import space
from nbtl_search.ledger import records, schema
from nbtl_search.ledger.recommendation import Recommendation, recommend
from nbtl_search.ledger.records import Totals, TrialRecord
from nbtl_search.paper.tables import KEYS, PaperRow, paper_rows
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.reports.importance import Importances, importances
from nbtl_search.space import Space
from nbtl_search.spec import Diagnosis, Epoch, Facts, StudySpec
from nbtl_search.spec.ablation import Ablation
from nbtl_search.spec.verdict import Verdict
from nbtl_search.study import ablations, diagnoses, store
from nbtl_search.study.audit import Audit, audit, pooled
from nbtl_search.study.store import Study

_PACKAGES: Final = (
    "nbtl-search",
    "torch",
    "torchvision",
    "timm",
    "optuna",
    "numpy",
    "scipy",
    "sqlalchemy",
    "plotly",
)
_PATIENCE_S: Final = 10


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of device of one host that trained for the study, and by how many workers."""

    host: str
    device: str
    n_workers: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made this report, and what trained for it."""

    versions: Mapping[str, str]
    commit: str | None
    """Of the checkout that the program lies in, '+' where files of it were changed since."""
    host: str
    cpu: str
    n_cores: int
    memory_gb: float
    devices: tuple[Device, ...]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a report is made of. Accuracies are percentages."""

    name: str
    spec: StudySpec
    facts: Facts
    searched: Space
    totals: Totals
    trials: tuple[TrialRecord, ...]
    recommendation: Recommendation
    curves: Mapping[int, Sequence[Epoch]]
    """By the trial's number."""
    verdict: Verdict | None
    """None where the study was never finalised."""
    audits: tuple[Audit, Audit]
    """Of early stopping: in this study, and in all of the database."""
    diagnosis: Diagnosis | None
    """The latest of these images and weights; None where there is none."""
    importances: Importances
    provenance: Provenance
    paper: tuple[PaperRow, ...]
    """The rows of the paper's tables 2-6 for this dataset; none where it has no such dataset."""
    made_at: datetime
    ablation: Ablation | None = None
    """The latest; None where there is none."""

    @property
    def best(self) -> TrialRecord | None:
        """The first trial of the recommended recipe."""
        return self.recommendation.best

    @property
    def default(self) -> TrialRecord | None:
        """The trial of the default recipe."""
        return self.recommendation.default


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
        recommendation=recommend(trials, n_images=study.facts.n_val),
        curves=records.curves(engine, study.id),
        verdict=verdict,
        audits=(audit(study), pooled(study.storage)),
        diagnosis=diagnoses.latest(study.storage, study.spec),
        importances=importances(trials, searched),
        provenance=provenance(study),
        paper=paper_rows(dataset) if dataset in KEYS else (),
        made_at=datetime.now(UTC),
        ablation=ablations.ablation_of(study),
    )


def provenance(study: Study) -> Provenance:
    """Find out what this machine and program are, and what trained the study and its final runs.

    Raises:
        StorageError: the database refuses or does not answer.
    """
    return Provenance(
        versions=versions(),
        commit=commit(Path(__file__).parents[1]),
        host=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        cpu=_cpu(),
        n_cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        memory_gb=psutil.virtual_memory().total / 2**30,
        devices=_devices(study),
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result may depend on, as installed here."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(package: Path) -> str | None:
    """Return the commit of the checkout that holds this package; None where git tracks it not."""
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    head = _git(package, "rev-parse", "HEAD")
    if not tracked or not head:
        return None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],  # noqa: S607  (wherever the user has it)
            check=False,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _devices(of: Study) -> tuple[Device, ...]:
    worker, study, finals = schema.worker, schema.study, f"{of.name}{store.FINAL_MARK}"
    query = (
        select(worker.c.host, worker.c.device, func.count().label("n_workers"))
        .select_from(worker.join(study))
        .where(or_(study.c.study_id == of.id, study.c.name.startswith(finals, autoescape=True)))
        .group_by(worker.c.host, worker.c.device)
        .order_by(worker.c.host, worker.c.device)
    )
    with storage_errors(), of.storage.engine.connect() as connection:
        return tuple(Device(**row) for row in connection.execute(query).mappings())
