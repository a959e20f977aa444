"""The jobs of a cluster's queue that were submitted for a study."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert as upsert

from nbtl_search.ledger import schema
from nbtl_search.postgres.connection import storage_errors


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submission: a job, or an array of them."""

    job_id: str
    cluster: str
    n_tasks: int
    folder: str
    submitted_at: datetime


def record(
    engine: Engine, study_id: int, *, job_id: str, cluster: str, n_tasks: int, folder: Path
) -> None:
    """Note a submission."""
    row = {
        "study_id": study_id,
        "job_id": job_id,
        "cluster": cluster,
        "n_tasks": n_tasks,
        "folder": str(folder),
    }
    with storage_errors(), engine.begin() as connection:
        connection.execute(upsert(schema.job).values(row).on_conflict_do_nothing())


def submitted(engine: Engine, study_id: int) -> list[Job]:
    """Return the study's submissions, the oldest first."""
    job = schema.job.c
    query = (
        select(job.job_id, job.cluster, job.n_tasks, job.folder, job.submitted_at)
        .where(job.study_id == study_id)
        .order_by(job.submitted_at)
    )
    with storage_errors(), engine.connect() as connection:
        return [Job(**row) for row in connection.execute(query).mappings()]
