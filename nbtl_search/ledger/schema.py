"""Our tables, which stand beside Optuna's in the same Postgres database."""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    Table,
    Text,
    TypeDecorator,
    false,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from nbtl_search.errors import UPGRADE_COMMAND, SchemaError
from nbtl_search.ledger import locks
from nbtl_search.spec import Recipe

VERSION: Final = 8
"""2: diagnoses; 3: lost attempts, jobs, notifications; 4: recipes and plans as JSONB; 5: averages
of weights; 6: granted epochs; 7: repeats and audits; 8: ablations."""

# What a version changes in tables that exist; tables that are missing are made afterwards, as they
# are now. A step must do with whatever an older version may lack: hence IF EXISTS. A column may be
# renamed because an older program that still runs fails with nothing written: a statement that
# names a missing column is rolled back, and its worker says what is missing and ends.
_STEPS: Final = {
    3: ("ALTER TABLE nbtl_trial ADD COLUMN IF NOT EXISTS n_lost integer NOT NULL DEFAULT 0",),
    4: (
        "ALTER TABLE nbtl_trial ALTER COLUMN recipe TYPE jsonb USING recipe::jsonb",
        "ALTER TABLE nbtl_trial RENAME COLUMN told TO notified",
        "ALTER TABLE IF EXISTS nbtl_final_run ALTER COLUMN recipe TYPE jsonb USING recipe::jsonb",
        "ALTER TABLE IF EXISTS nbtl_final ALTER COLUMN plan TYPE jsonb USING plan::jsonb",
        (
            "ALTER TABLE IF EXISTS nbtl_notice RENAME CONSTRAINT nbtl_notice_study_id_fkey"
            " TO nbtl_notification_study_id_fkey"
        ),
        "ALTER INDEX IF EXISTS nbtl_notice_pkey RENAME TO nbtl_notification_pkey",
        "ALTER TABLE IF EXISTS nbtl_notice RENAME TO nbtl_notification",
    ),
    5: (
        "ALTER TABLE IF EXISTS nbtl_final ADD COLUMN IF NOT EXISTS averaged jsonb",
        "ALTER TABLE IF EXISTS nbtl_final_run ADD COLUMN IF NOT EXISTS averaged jsonb",
        # Their first stage has kept no weights that could be averaged.
        (
            "DO $$ BEGIN IF to_regclass('nbtl_final') IS NOT NULL THEN"
            """ UPDATE nbtl_final SET plan = plan || '{"averages": false}';"""
            " END IF; END $$"
        ),
    ),
    6: (
        "ALTER TABLE nbtl_study ADD COLUMN IF NOT EXISTS closed boolean NOT NULL DEFAULT false",
        "ALTER TABLE nbtl_trial ADD COLUMN IF NOT EXISTS granted integer NOT NULL DEFAULT 0",
        "ALTER TABLE nbtl_attempt ADD COLUMN IF NOT EXISTS n_repeated integer NOT NULL DEFAULT 0",
        # What has ended was granted what it has trained; what is open trains to its end, as it did.
        (
            "UPDATE nbtl_trial t SET granted = CASE"
            " WHEN state IN ('complete', 'pruned', 'failed')"
            " THEN (SELECT count(*) FROM nbtl_epoch e WHERE e.trial_id = t.trial_id)"
            " ELSE (recipe #>> '{train,epochs}')::integer END"
        ),
    ),
    7: (
        "ALTER TABLE nbtl_trial ADD COLUMN IF NOT EXISTS repeat_of integer",
        "ALTER TABLE nbtl_trial ADD COLUMN IF NOT EXISTS audited boolean NOT NULL DEFAULT false",
        # A study that was planned without repeats has none.
        (
            "ALTER TABLE nbtl_study ADD COLUMN IF NOT EXISTS n_first integer NOT NULL"
            " DEFAULT 2147483647"
        ),
        "ALTER TABLE nbtl_study ALTER COLUMN n_first SET DEFAULT 0",
    ),
}

metadata = MetaData()
tokens = Sequence("nbtl_token", metadata=metadata)


class StoredRecipe(TypeDecorator[Recipe]):
    """A recipe, as JSONB: it goes in and comes out as a value, parsed where its row is read.

    JSONB keeps values and not texts: keys are reordered, and 1e-05 comes back as 0.00001. So
    nothing may compare or hash what is stored; a recipe's own JSON is always in the order of its
    fields.
    """

    impl = JSONB
    cache_ok = True

    def process_bind_param(self, value: Recipe | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Return plain data of a recipe."""
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any, dialect: Dialect) -> Recipe | None:  # noqa: ARG002
        """Return the recipe of plain data."""
        return None if value is None else Recipe.parse(value)


def _time(name: str, *, now: bool = False) -> Column[object]:
    default = func.clock_timestamp() if now else None
    return Column(name, DateTime(timezone=True), nullable=not now, server_default=default)


meta = Table("nbtl_meta", metadata, Column("version", Integer, nullable=False))

study = Table(
    "nbtl_study",
    metadata,
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("uid", Text, nullable=False, server_default=text("gen_random_uuid()::text")),
    Column("name", Text, nullable=False, unique=True),
    Column("fingerprint", Text, nullable=False),
    Column("n_trials", Integer, nullable=False),
    Column("budget_epochs", Integer),
    Column("budget_slot_s", Float),
    Column("budget_wall_s", Float),
    Column("started", Integer, nullable=False, server_default="0"),
    # Recipes that waited when it was made; none runs again before all of them were tried.
    Column("n_first", Integer, nullable=False, server_default="0"),
    Column("desired", Text, nullable=False, server_default="run"),
    # What is left of the budget is of no use: too few epochs for another trial.
    Column("closed", Boolean, nullable=False, server_default=false()),
    _time("created_at", now=True),
    CheckConstraint("started <= n_trials", name="nbtl_budget"),
    CheckConstraint("desired IN ('run', 'pause', 'stop')", name="nbtl_study_desired"),
)

trial = Table(
    "nbtl_trial",
    metadata,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("study_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("slot", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("protected", Boolean, nullable=False),
    Column("recipe", StoredRecipe, nullable=False),
    # The number of the trial whose recipe it trains with another seed.
    Column("repeat_of", Integer),
    # It runs to its end whatever a rung says, so that one sees what rungs stop.
    Column("audited", Boolean, nullable=False, server_default=false()),
    Column("state", Text, nullable=False),
    # "run", or "cancel": see `cancellation`.
    Column("desired", Text, nullable=False, server_default="run"),
    Column("token", BigInteger, nullable=False, server_default=tokens.next_value()),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("n_failures", Integer, nullable=False, server_default="0"),
    Column("n_lost", Integer, nullable=False, server_default="0"),
    # Epochs that it may train, counted from its first; of one that ended, those it has trained.
    Column("granted", Integer, nullable=False, server_default="0"),
    Column("worker", Text),
    _time("lease_expires"),
    Column("value", Float),
    Column("best_epoch", Integer),
    Column("cause", Text),
    Column("message", Text),
    Column("notified", Boolean, nullable=False, server_default=false()),
    _time("started_at", now=True),
    _time("finished_at"),
    CheckConstraint(
        "state IN ('waiting', 'running', 'paused', 'complete', 'pruned', 'failed')",
        name="nbtl_trial_state",
    ),
    CheckConstraint(
        "(state = 'running') = (lease_expires IS NOT NULL)", name="nbtl_no_running_without_lease"
    ),
    Index("nbtl_trial_of_study", "study_id", "state"),
)


attempt = Table(
    "nbtl_attempt",
    metadata,
    Column("trial_id", ForeignKey(trial.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("token", BigInteger, nullable=False),
    Column("worker", Text, nullable=False),
    # Epochs that were trained before, and whose checkpoint was lost. The budget counts them.
    Column("n_repeated", Integer, nullable=False, server_default="0"),
    _time("started_at", now=True),
    _time("ended_at"),
    Column("cause", Text),
    Column("message", Text),
)

epoch = Table(
    "nbtl_epoch",
    metadata,
    Column("trial_id", ForeignKey(trial.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("train_loss", Float, nullable=False),
    Column("val_loss", Float),
    Column("val_top1", Float),
    Column("val_top5", Float),
    Column("lr", Float, nullable=False),
    Column("n_images", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("micro_batch", Integer, nullable=False),
    _time("recorded_at", now=True),
)

worker = Table(
    "nbtl_worker",
    metadata,
    Column("worker", Text, primary_key=True),
    Column("study_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("trial_number", Integer),
    _time("started_at", now=True),
    _time("seen_at", now=True),
)

# A finalisation of a study: two studies of their own, whose trials are its final runs.
final = Table(
    "nbtl_final",
    metadata,
    Column("parent_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("plan", JSONB, nullable=False),
    Column("confirm_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), unique=True),
    Column("test_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), unique=True),
    Column("winner", Integer),
    Column("averaged", JSONB(none_as_null=True)),
    Column("reason", Text, nullable=False),
    _time("created_at", now=True),
    _time("test_opened_at"),
    CheckConstraint(
        "(test_id IS NULL) = (test_opened_at IS NULL)", name="nbtl_final_readings_are_recorded"
    ),
)

# An ablation of a study's recipe: a study of its own, whose trials are its runs.
ablation = Table(
    "nbtl_ablation",
    metadata,
    Column("parent_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("plan", JSONB, nullable=False),
    Column(
        "study_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), nullable=False, unique=True
    ),
    _time("created_at", now=True),
)

# What the slots of such a study train; the ledger's trial has the same slot.
final_run = Table(
    "nbtl_final_run",
    metadata,
    Column("study_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), primary_key=True),
    Column("slot", Integer, primary_key=True),
    # A trial of the search; of an ablation, a variant of its plan.
    Column("candidate", Integer, nullable=False),
    # The trials of an average of weights, the candidate first; null for a run that trains.
    Column("averaged", JSONB(none_as_null=True)),
    Column("name", Text, nullable=False),
    Column("recipe", StoredRecipe, nullable=False),
)

final_result = Table(
    "nbtl_final_result",
    metadata,
    Column("trial_id", ForeignKey(trial.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("n_images", Integer, nullable=False),
    Column("top1", Float, nullable=False),
    Column("top5", Float, nullable=False),
    Column("ten_crop_top1", Float, nullable=False),
    Column("ten_crop_top5", Float, nullable=False),
    Column("predictions", LargeBinary, nullable=False),
    Column("host", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("digest", Text, nullable=False),
)

# Measures of a dataset under one network's weights: no study owns them. The latest counts.
diagnosis = Table(
    "nbtl_diagnosis",
    metadata,
    Column("diagnosis_id", Integer, primary_key=True),
    Column("data_digest", Text, nullable=False),
    Column("weights_digest", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("image_px", Integer, nullable=False),
    Column("layer", Text, nullable=False),
    # No JSONB: reports list a measure's settings in the order they were given.
    Column("diagnosis", Text, nullable=False),
    _time("created_at", now=True),
    Index("nbtl_diagnosis_of_data", "data_digest", "weights_digest"),
)

# Jobs of a cluster's queue that run workers of a study.
job = Table(
    "nbtl_job",
    metadata,
    Column("study_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), primary_key=True),
    Column("job_id", Text, primary_key=True),
    Column("cluster", Text, primary_key=True),
    Column("n_tasks", Integer, nullable=False),
    Column("folder", Text, nullable=False),
    _time("submitted_at", now=True),
)

# What people are notified of, each thing once: a row is claimed, sent, and marked as sent.
notification = Table(
    "nbtl_notification",
    metadata,
    Column("study_id", ForeignKey(study.c.study_id, ondelete="CASCADE"), primary_key=True),
    Column("event", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("n_tries", Integer, nullable=False, server_default="0"),
    _time("claimed_at", now=True),
    _time("sent_at"),
)


def create_or_upgrade(engine: Engine) -> int:
    """Make our tables, or bring them to this code's version; return the version they had.

    Raises:
        SchemaError: they are newer than this code.
    """
    with engine.begin() as connection:
        locks.take_our_tables(connection)
        found = _version(engine)
        if found > VERSION:
            raise SchemaError(_newer(found))
        if found > 0:
            for version in range(found + 1, VERSION + 1):
                for step in _STEPS.get(version, ()):
                    connection.execute(text(step))
        # After the steps: one of them renames a table, which must not be there yet.
        metadata.create_all(connection)
        if found < VERSION:
            connection.execute(insert(meta).values(version=VERSION))
    return found


def check(engine: Engine) -> None:
    """Make sure that our tables are of this code's version, and change nothing.

    Raises:
        SchemaError: they are missing, older or newer; the message has the command to run.
    """
    found = _version(engine)
    if found > VERSION:
        raise SchemaError(_newer(found))
    if found < VERSION:
        state = "has no nbtl-search tables" if found == 0 else f"has tables of version {found}"
        message = (
            f"the database {state}, this program needs version {VERSION}; run: {UPGRADE_COMMAND}"
        )
        raise SchemaError(message)


def _version(engine: Engine) -> int:
    if not inspect(engine).has_table(meta.name):
        return 0
    with engine.connect() as connection:
        return connection.execute(select(func.max(meta.c.version))).scalar() or 0


def _newer(found: int) -> str:
    return (
        f"the database has tables of version {found}, newer than this program's {VERSION}; "
        "upgrade nbtl-search on this machine"
    )
