"""Notifications about a study: each is sent once, by whoever comes first, as a signed message.

A notification is claimed by a row, sent, and marked as sent. Whose claim is older than `_CLAIM_S`
and not sent has died or failed: the next one takes it over, after a pause that doubles. So each is
sent at least once, and twice only where somebody dies between sending and marking.

A message is JSON for an address that only this user's file knows. The signature is that of many
webhooks: `X-NBTL-Signature: t=SECONDS,v1=HEX`, where HEX is the HMAC-SHA256 of "SECONDS." and the
body under the shared secret.
"""

import hashlib
import hmac
import http.client
import json
import logging
import ssl
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, final
from urllib.parse import urlsplit

from pydantic import Field
from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from nbtl_search.errors import NbtlError, SpecError
from nbtl_search.ledger import ledger, records, schema
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Value, read_toml
from nbtl_search.study.store import Study

logger = logging.getLogger(__name__)
VERSION: Final = 1
HEADER: Final = "X-NBTL-Signature"
STALL_S: Final = 900.0
_CLAIM_S: Final = 60
_LONGEST_S: Final = 86_400
_SLOW: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class Notification:
    """What became of a study; `subject` tells two of one kind apart."""

    study: str
    event: str
    subject: str
    text: str
    details: dict[str, Any]


class WebhookSettings(Value):
    """The file of a webhook: its address is as secret as its key."""

    url: str = Field(pattern=r"^https?://[^\s]+$")
    secret: str = Field(min_length=16, description="shared with the receiver")
    events: tuple[Literal["finished", "failed", "stalled", "test"], ...] = (
        "finished",
        "failed",
        "stalled",
        "test",
    )
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0


def due(study: Study) -> list[Notification]:
    """Return every notification of what is so now; those that were sent before are among them.

    Raises:
        StorageLostError: the database does not answer.
    """
    engine = study.storage.engine
    trials = records.trials(engine, study.id)
    found = [_failed(study, trial) for trial in trials if trial.state == "failed"]
    workers = records.workers(engine, study.id)
    totals = records.totals(engine, study.id, n_workers=len(workers))
    if totals.state == "finished":
        found.append(_finished(study, trials, totals))
    elif totals.state in {"running", "idle"}:
        found += _stalled(study)
    return found


def claim(study: Study, notification: Notification) -> bool:
    """Take it upon us to send this; False where it was sent, or another is at it."""
    # One statement decides: of many who see the same, one inserts, or one finds a claim that has
    # grown old. A claim is never given back: a sender that died or was refused is overtaken, after
    # 1, 2, 4, … minutes, at most a day, so that a receiver that is down is not flooded.
    table = schema.notification
    row = {"study_id": study.id, "event": notification.event, "subject": notification.subject}
    pause_s = func.least(_LONGEST_S, _CLAIM_S * func.pow(2, table.c.n_tries - 1))
    age_s = func.extract("epoch", ledger.NOW - table.c.claimed_at)
    query = (
        upsert(table)
        .values(row | {"n_tries": 1})
        .on_conflict_do_update(
            index_elements=["study_id", "event", "subject"],
            set_={"n_tries": table.c.n_tries + 1, "claimed_at": ledger.NOW},
            where=(table.c.sent_at.is_(None)) & (age_s > pause_s),
        )
        .returning(table.c.n_tries)
    )
    with storage_errors(), study.storage.engine.begin() as connection:
        return connection.execute(query).scalar() is not None


def mark_sent(study: Study, notification: Notification) -> None:
    """Note that it was sent."""
    table = schema.notification.c
    query = update(schema.notification).where(
        table.study_id == study.id,
        table.event == notification.event,
        table.subject == notification.subject,
    )
    with storage_errors(), study.storage.engine.begin() as connection:
        connection.execute(query.values(sent_at=ledger.NOW))


def was_sent(study: Study, notification: Notification) -> bool:
    """Tell whether somebody has sent this."""
    table = schema.notification.c
    query = select(table.sent_at).where(
        table.study_id == study.id,
        table.event == notification.event,
        table.subject == notification.subject,
    )
    with storage_errors(), study.storage.engine.connect() as connection:
        return connection.execute(query).scalar() is not None


def read_settings(file: Path) -> WebhookSettings:
    """Read the file; nobody else may be able to.

    Raises:
        SpecError: it is not there, not valid, or open to others; never with the secret.
    """
    try:
        mode = file.stat().st_mode
    except OSError as error:
        message = f"cannot read the webhook's file {str(file)!r}: {error.strerror}"
        raise SpecError(message) from error
    if stat.S_IMODE(mode) & 0o077:
        message = f"the webhook's file holds a secret and must be private; run: chmod 600 {file}"
        raise SpecError(message)
    plain = read_toml(file)
    try:
        return WebhookSettings.parse(plain)
    except SpecError as error:
        if "got" not in str(error):
            raise
        key = str(error).partition(":")[0]
        message = f"{str(file)!r}: {key} is not valid; see docs/operations.md"
        raise SpecError(message) from None


def send(settings: WebhookSettings, message: Mapping[str, Any]) -> None:
    """Send one message.

    Raises:
        NbtlError: it was not taken; the error names the host and nothing secret.
    """
    body = json.dumps({"version": VERSION, **message}, default=str).encode()
    request = urllib.request.Request(  # noqa: S310  (the settings allow http and https only)
        settings.url,
        data=body,
        headers={
            "Content-Type": "application/json",
            HEADER: signature(body, secret=settings.secret, seconds=int(time.time())),
        },
    )
    opener = urllib.request.build_opener(
        _NoRedirects, urllib.request.HTTPSHandler(context=ssl.create_default_context())
    )
    try:
        with opener.open(request, timeout=settings.timeout_s):
            return
    except urllib.error.HTTPError as error:
        said = f"status {error.code}"
        error.close()
    except http.client.HTTPException as error:  # no HTTP, or no address: its text is foreign
        said = type(error).__name__
    except (OSError, ValueError) as error:
        said = str(getattr(error, "reason", error))[:100]
    host = urlsplit(settings.url).hostname
    text = f"the webhook at {host} must take the message, got {said}; it is sent again later"
    raise NbtlError(text)


def signature(body: bytes, *, secret: str, seconds: int) -> str:
    """Return the header's value for a body sent at this time."""
    signed = hmac.new(secret.encode(), b"%d.%s" % (seconds, body), hashlib.sha256)
    return f"t={seconds},v1={signed.hexdigest()}"


@final
class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A message with a signature goes where it was addressed, or nowhere."""

    def redirect_request(self, *_: object) -> None:
        return None


def _failed(study: Study, trial: TrialRecord) -> Notification:
    return Notification(
        study=study.name,
        event="failed",
        subject=str(trial.number),
        text=f"study {study.name}: trial {trial.number} failed ({trial.cause}): {trial.message}",
        details={"trial": trial.number, "cause": trial.cause, "message": trial.message},
    )


def _finished(study: Study, trials: list[TrialRecord], totals: records.Totals) -> Notification:
    found = recommend(trials, n_images=study.facts.n_val)
    best, value = found.best, found.value_of(found.best)
    usual = found.value_of(found.default)
    result = "no trial ran to its end"
    if best is not None and value is not None:
        result = f"best {value.mean:.2f} % (trial {best.number})"
    return Notification(
        study=study.name,
        event="finished",
        subject=str(totals.n_trials),
        text=f"study {study.name} has finished: {result}, {totals.complete} complete, "
        f"{totals.pruned} stopped early, {totals.failed} failed",
        details={
            "n_trials": totals.n_trials,
            "complete": totals.complete,
            "pruned": totals.pruned,
            "failed": totals.failed,
            "best": None
            if best is None or value is None
            else {"trial": best.number, "value": value.mean},
            "default": None if usual is None else usual.mean,
        },
    )


def _stalled(study: Study) -> list[Notification]:
    """Return the notification that nothing has happened for too long, where that is so."""
    last, quiet_s, slowest_s = _quiet(study.storage.engine, study.id)
    limit_s = max(STALL_S, _SLOW * slowest_s)
    if quiet_s < limit_s:
        return []
    minutes = quiet_s / 60
    return [
        Notification(
            study=study.name,
            event="stalled",
            subject=last.isoformat(),
            text=f"study {study.name}: no epoch and no new worker for {minutes:.0f} minutes, and "
            "it is not finished",
            details={"quiet_s": round(quiet_s), "since": last.isoformat()},
        )
    ]


def _quiet(engine: Engine, study_id: int) -> tuple[datetime, float, float]:
    """Return when something happened last, how long ago, and the seconds of the slowest epoch."""
    epoch, trial, worker, study = schema.epoch, schema.trial, schema.worker, schema.study
    of_study = epoch.join(trial)
    recorded = select(func.max(epoch.c.recorded_at)).select_from(of_study)
    slowest = select(func.max(epoch.c.seconds)).select_from(of_study)
    started = select(func.max(worker.c.started_at)).where(worker.c.study_id == study_id)
    last = func.greatest(
        study.c.created_at,
        recorded.where(trial.c.study_id == study_id).scalar_subquery(),
        started.scalar_subquery(),
    )
    query = select(
        last,
        func.extract("epoch", ledger.NOW - last),
        func.coalesce(slowest.where(trial.c.study_id == study_id).scalar_subquery(), 0.0),
    ).where(study.c.study_id == study_id)
    with storage_errors(), engine.connect() as connection:
        row = connection.execute(query).one()
    return row[0].astimezone(UTC), float(row[1]), float(row[2])
