"""Leases: who trains which trial for how long, and when that of a dead worker is taken over.

    grant:               a free slot, or paused ──► running
    pause:               running ──► paused
    release, a failure:  running ──► waiting
    take_over:           waiting, or running with an expired lease ──► running, with a new token
    finish:              running ──► complete, pruned or failed
    cancellation:        any of them ──► pruned, as soon as nobody trains it
    the study's end:     paused ──► pruned

A trial is *granted* epochs, which count as spent from then on, whatever becomes of the worker, and
it is *leased*: its row names the worker, an expiry by the database's clock, and a fencing
token that grows with every attempt. Whoever holds the token may write; who lost it gets a
`FencedError` and stops. Each change of state is one transaction, so that a worker may be killed
between any two lines here. The terminal row is the truth; Optuna is notified afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, final

from sqlalchemy import Connection, Engine, and_, case, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from nbtl_search.errors import FencedError
from nbtl_search.ledger import cancellation, ending, grants, ledger, schema
from nbtl_search.ledger.grants import Choice
from nbtl_search.ledger.promotion import Ladder
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Epoch, Recipe
from nbtl_search.spec.verdict import FinalResult

Desired = Literal["run", "pause", "stop"]
"""Of a study."""

Wanted = Literal[Desired, "cancel"]
"""Of a trial."""

Terminal = Literal["complete", "pruned", "failed"]
MAX_FAILURES: Final = 3
"""In a row: a trial that gets on between them has only had a bad week of machines."""

MAX_LOST: Final = 10
"""Workers in a row that may be lost with a trial before an epoch. More than failures: preemption
and power cuts say nothing of the trial."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A trial that the sampler has proposed."""

    trial_id: int
    number: int
    name: str
    protected: bool
    recipe: Recipe
    repeat_of: int | None = None
    """The number of the trial whose recipe it trains with another seed."""
    audited: bool = False
    """It runs to its end whatever a rung says."""


Ask = Callable[[int, int | None], Asked]
"""Proposes the trial of a slot: a new one, or a repeat of the trial with this number."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to train one trial, and all that is needed for it."""

    trial_id: int
    number: int
    name: str
    protected: bool
    recipe: Recipe
    token: int
    attempt: int
    worker: str
    until: int
    """The last epoch that is granted."""
    n_recorded: int
    """Epochs that the ledger has of it."""


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How a trial ended."""

    state: Terminal
    value: float | None = None
    best_epoch: int | None = None
    cause: str | None = None
    message: str | None = None


@final
class Leases:
    """The leases of one study's trials."""

    def __init__(
        self, engine: Engine, study_id: int, *, ladder: Ladder, lease_s: float = 60.0
    ) -> None:
        self._engine = engine
        self._study_id = study_id
        self._ladder = ladder
        self._lease = timedelta(seconds=lease_s)

    def take_over(self, worker: str) -> Lease | None:
        """Take a trial that was released, or whose worker has not renewed its lease in time.

        When the database comes back after an outage, all leases have expired and their workers
        are well: they get as long as a lease from its start to renew them.

        A trial that has lost `MAX_LOST` workers in a row without an epoch fails at the next: it
        may be what takes them down. One that is to be cancelled is nobody's to take: the next
        grant ends it.
        """
        trial = schema.trial
        is_abandoned = and_(
            trial.c.state == "running",
            trial.c.lease_expires < ledger.NOW,
            # Without this line a restart of the database would hand every trial to whoever asks
            # first, and fence off workers that are well.
            func.pg_postmaster_start_time() < ledger.NOW - self._lease,
        )
        free = (
            select(trial.c.trial_id)
            .where(
                trial.c.study_id == self._study_id,
                or_(trial.c.state == "waiting", is_abandoned),
                trial.c.desired != cancellation.CANCEL,
                ledger.wants_to_run(self._study_id),
            )
            .order_by(trial.c.number)
            .limit(1)
            # Two who look at once: the second skips the row that the first has locked, and takes
            # the next. Without the lock both would read it free, and the second would take over
            # the lease that the first has just got.
            .with_for_update(skip_locked=True, of=trial)
            .scalar_subquery()
        )
        with storage_errors(), self._engine.begin() as connection:
            row = connection.execute(
                update(trial)
                .where(trial.c.trial_id == free)
                .values(
                    n_lost=trial.c.n_lost + case((trial.c.state == "running", 1), else_=0),
                    **self._handed_to(worker),
                )
                .returning(trial)
            ).one_or_none()
            if row is None:
                return None
            ending.close_attempts(connection, [row.trial_id], "infra", "its lease expired")
            lease = _open_attempt(connection, row)
            if row.n_lost <= MAX_LOST:
                return lease
            message = f"{row.n_lost} workers in a row were lost with it before an epoch was done"
            self._end_trial(
                connection, lease, TrialOutcome(state="failed", cause="infra", message=message)
            )
            return None

    def grant(self, worker: str, ask: Ask) -> Lease | None:
        """Grant epochs: to a paused trial, or to the one that `ask` proposes for a free slot.

        Grants in one study come one after the other, and a worker that dies or hangs in between
        gives its slot back by the rollback. They queue at a lock of their own: at the row they
        would wait twice, for the row and for whoever changes it, each with a limit of its own.

        Returns:
            None where the budget is spent or the study is not to run. If nothing runs any more,
            that ends the search, and whatever is paused ends with it.
        """
        with storage_errors(), self._engine.begin() as connection:
            match grants.choose(connection, self._study_id, self._ladder):
                case None:
                    return None
                case Choice(promoted=None) as choice:
                    return self._begin(connection, worker, ask, choice)
                case choice:
                    return self._promote(connection, worker, choice)

    def end_if_spent(self) -> None:
        """End the search if nothing is to be granted any more, and grant nothing otherwise."""
        with storage_errors(), self._engine.begin() as connection:
            grants.choose(connection, self._study_id, self._ladder)

    def _promote(self, connection: Connection, worker: str, choice: Choice) -> Lease:
        trial, paused = schema.trial, choice.promoted
        assert paused is not None, "grant() sends nobody else here"  # noqa: S101
        stop = self._ladder.stop_after(paused.granted, protected=paused.never_pauses)
        row = connection.execute(
            update(trial)
            .where(trial.c.trial_id == paused.trial_id)
            .values(
                granted=paused.granted + choice.room.at_most(stop - paused.granted),
                **self._handed_to(worker),
            )
            .returning(trial)
        ).one()
        return _open_attempt(connection, row)

    def _handed_to(self, worker: str) -> dict[str, Any]:
        """Return what changes in the row of a trial with which another attempt begins."""
        return {
            "state": "running",
            "worker": worker,
            "attempt": schema.trial.c.attempt + 1,
            # From here on the worker before is fenced, whatever it still sends.
            "token": schema.tokens.next_value(),
            "lease_expires": ledger.NOW + self._lease,
        }

    def _begin(self, connection: Connection, worker: str, ask: Ask, choice: Choice) -> Lease:
        study = schema.study
        slot = connection.execute(
            update(study)
            .where(study.c.study_id == self._study_id)
            .values(started=study.c.started + 1)
            .returning(study.c.started)
        ).scalar_one()
        # Optuna writes its trial over a connection of its own, and commits it before us. If we die
        # from here on, our slot rolls back and that trial is an orphan, without a row of ours; the
        # next asker adopts it. Under the lock nobody else can be about to claim it.
        asked = ask(slot, None if choice.repeated is None else choice.repeated.number)
        row = connection.execute(
            insert(schema.trial)
            .values(
                trial_id=asked.trial_id,
                study_id=self._study_id,
                number=asked.number,
                slot=slot,
                name=asked.name,
                protected=asked.protected,
                recipe=asked.recipe,
                repeat_of=asked.repeat_of,
                audited=asked.audited,
                state="running",
                worker=worker,
                lease_expires=ledger.NOW + self._lease,
                granted=choice.room.at_most(
                    self._ladder.stop_after(0, protected=asked.protected or asked.audited)
                ),
            )
            .returning(schema.trial)
        ).one()
        return _open_attempt(connection, row)

    def renew(self, lease: Lease) -> Wanted:
        """Renew the lease; return what is wanted of the trial (of it or of its whole study).

        A lease that expired and that nobody took over is renewed all the same.

        Raises:
            FencedError: another worker holds the trial.
        """
        trial, study = schema.trial, schema.study
        with storage_errors(), self._engine.begin() as connection:
            # Held by token, not by time: as long as nobody took it, a late heartbeat is as good as
            # one in time. That is what makes an outage harmless.
            row = connection.execute(
                update(trial)
                .where(*_held(lease), study.c.study_id == trial.c.study_id)
                .values(lease_expires=ledger.NOW + self._lease)
                .returning(trial.c.desired, study.c.desired.label("study_desired"))
            ).one_or_none()
        if row is None:
            raise FencedError(_fenced(lease))
        wanted: Wanted = row.study_desired if row.desired == "run" else row.desired
        return wanted

    def record(self, lease: Lease, epochs: Sequence[Epoch], *, n_repeated: int = 0) -> None:
        """Append epochs; those already there stay as they are.

        Args:
            lease: under which they were trained.
            epochs: in order.
            n_repeated: how many in all this attempt has trained that an attempt before had, too.

        Raises:
            FencedError: another worker holds the trial.
        """
        rows = [
            epoch.model_dump() | {"trial_id": lease.trial_id, "attempt": lease.attempt}
            for epoch in epochs
        ]
        with storage_errors(), self._engine.begin() as connection:
            _lock(connection, lease)
            if n_repeated:
                attempt = schema.attempt
                connection.execute(
                    update(attempt)
                    .where(attempt.c.trial_id == lease.trial_id, attempt.c.attempt == lease.attempt)
                    .values(n_repeated=n_repeated)
                )
            if rows:
                # A worker that lost the answer sends the same epochs again, and so does one that
                # resumed. Those change nothing, and are no progress: if they forgave failures, a
                # trial that dies after its first epoch each time would go on for ever.
                added = connection.execute(
                    upsert(schema.epoch).values(rows).on_conflict_do_nothing()
                )
                if added.rowcount:
                    _forgive_failures(connection, lease)

    def finish(
        self,
        lease: Lease,
        outcome: TrialOutcome,
        *,
        result: FinalResult | None = None,
        predictions: bytes = b"",
    ) -> None:
        """End the trial.

        Args:
            lease: under which it was trained.
            outcome: how it ended.
            result: of a final run of the test stage.
            predictions: the content of its predictions.npz, stored beside the result.

        Raises:
            FencedError: another worker holds the trial.
        """
        with storage_errors(), self._engine.begin() as connection:
            _lock(connection, lease)
            if result is not None:
                row = result.score.model_dump() | result.weights.model_dump()
                row |= {"trial_id": lease.trial_id, "predictions": predictions}
                connection.execute(insert(schema.final_result).values(row))
            self._end_trial(connection, lease, outcome)

    def pause(self, lease: Lease) -> None:
        """Set the trial aside at the end of what it was granted; it may be promoted later.

        Raises:
            FencedError: another worker holds the trial.
        """
        with storage_errors(), self._engine.begin() as connection:
            _lock(connection, lease)
            _set_aside(connection, lease, "paused", cause="paused")

    def release(self, lease: Lease, *, cause: str, message: str = "") -> None:
        """Give the trial back for any worker to go on with; this is no failure of it.

        Raises:
            FencedError: another worker holds the trial.
        """
        with storage_errors(), self._engine.begin() as connection:
            _lock(connection, lease)
            _set_aside(connection, lease, "waiting", cause=cause, message=message)

    def fail_attempt(self, lease: Lease, *, cause: str, message: str) -> bool:
        """Count a failure; the trial waits for another attempt, or fails after too many.

        Returns:
            Whether there will be another attempt, if the trial is wanted.

        Raises:
            FencedError: another worker holds the trial.
        """
        trial = schema.trial
        with storage_errors(), self._engine.begin() as connection:
            _lock(connection, lease)
            n_failures = connection.execute(
                update(trial)
                .where(trial.c.trial_id == lease.trial_id)
                .values(n_failures=trial.c.n_failures + 1)
                .returning(trial.c.n_failures)
            ).scalar_one()
            if n_failures > MAX_FAILURES:
                self._end_trial(
                    connection, lease, TrialOutcome(state="failed", cause=cause, message=message)
                )
                return False
            _set_aside(connection, lease, "waiting", cause=cause, message=message)
            return True

    def _end_trial(self, connection: Connection, lease: Lease, outcome: TrialOutcome) -> None:
        connection.execute(
            update(schema.trial)
            .where(schema.trial.c.trial_id == lease.trial_id)
            .values(
                state=outcome.state,
                # What a recipe that cannot be trained did not need, others may have.
                granted=ending.n_recorded(lease.trial_id).scalar_subquery(),
                value=outcome.value,
                best_epoch=outcome.best_epoch,
                cause=outcome.cause,
                message=outcome.message,
                lease_expires=None,
                finished_at=ledger.NOW,
            )
        )
        ending.close_attempts(
            connection, [lease.trial_id], outcome.cause or outcome.state, outcome.message or ""
        )


def _open_attempt(connection: Connection, row: Any) -> Lease:
    """Note the attempt that begins with this row of a trial; return its lease."""
    n_recorded = connection.execute(ending.n_recorded(row.trial_id)).scalar_one()
    connection.execute(
        insert(schema.attempt).values(
            trial_id=row.trial_id, attempt=row.attempt, token=row.token, worker=row.worker
        )
    )
    return Lease(
        trial_id=row.trial_id,
        number=row.number,
        name=row.name,
        protected=row.protected,
        recipe=row.recipe,
        token=row.token,
        attempt=row.attempt,
        worker=row.worker,
        until=row.granted,
        n_recorded=n_recorded,
    )


def _held(lease: Lease) -> tuple[Any, ...]:
    trial = schema.trial
    return (
        trial.c.trial_id == lease.trial_id,
        trial.c.token == lease.token,
        trial.c.state == "running",
    )


def _lock(connection: Connection, lease: Lease) -> None:
    """Lock the trial's row for this transaction, if the lease still holds it.

    A check without the lock would not do: between it and the write another could take the trial
    over. `take_over` skips rows that are locked here; who comes here while a trial is taken over
    waits for that transaction, and finds another token.
    """
    query = select(schema.trial.c.trial_id).where(*_held(lease)).with_for_update()
    if connection.execute(query).scalar() is None:
        raise FencedError(_fenced(lease))


def _fenced(lease: Lease) -> str:
    return (
        f"trial {lease.number} belongs to a newer attempt than {lease.attempt} "
        f"(token {lease.token}); this one stops"
    )


def _set_aside(
    connection: Connection,
    lease: Lease,
    state: Literal["waiting", "paused"],
    *,
    cause: str,
    message: str = "",
) -> None:
    """End the attempt, but not its trial, unless that is to be cancelled."""
    trial = schema.trial
    is_its_own = trial.c.trial_id == lease.trial_id
    connection.execute(
        update(trial).where(is_its_own).values(state=state, lease_expires=None, worker=None)
    )
    ending.close_attempts(connection, [lease.trial_id], cause, message)
    cancellation.end_unwanted(connection, is_its_own)


def _forgive_failures(connection: Connection, lease: Lease) -> None:
    """Forget the failures of a trial that gets on: only those in a row count against it."""
    trial = schema.trial
    connection.execute(
        update(trial)
        .where(trial.c.trial_id == lease.trial_id, or_(trial.c.n_failures > 0, trial.c.n_lost > 0))
        .values(n_failures=0, n_lost=0)
    )
