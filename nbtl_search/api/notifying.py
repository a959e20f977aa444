"""Tell people what became of a study."""

import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened_study
from nbtl_search.errors import NbtlError, StorageLostError
from nbtl_search.launchers import webhook
from nbtl_search.study import notices
from nbtl_search.study.notices import Notice
from nbtl_search.study.store import Study

logger = logging.getLogger(__name__)


def tell_test(file: Path) -> None:
    """Send a message that says that messages arrive.

    Raises:
        SpecError: the file is not valid.
        NbtlError: the message was not taken.
    """
    settings = webhook.read_settings(file)
    webhook.send(settings, {"event": "test", "text": "nbtl-search can reach you", **_stamp()})


def tell_once(study: Study, settings: webhook.WebhookSettings) -> list[Notice]:
    """Tell what is due and was not told; return what was told. Failures are tried again later.

    Raises:
        StorageLostError: the database does not answer.
    """
    told = []
    for notice in notices.due(study):
        if notice.event not in settings.events or not notices.claim(study, notice):
            continue
        message = {
            "event": notice.event,
            "study": notice.study,
            "subject": notice.subject,
            "text": notice.text,
            "details": notice.details,
            **_stamp(f"{study.uid}/{notice.event}/{notice.subject}"),
        }
        try:
            webhook.send(settings, message)
        except NbtlError as error:
            logger.warning("%s", error, extra={"action": "notify"})
            continue
        notices.mark_sent(study, notice)
        told.append(notice)
    return told


def notify(
    name: str,
    file: Path,
    *,
    every_s: float | None = None,
    home: Path | None = None,
    storage: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_told: Callable[[Notice], None] = lambda _: None,
) -> None:
    """Tell what became of a study, once or until it is told that it has finished.

    Args:
        name: of the study.
        file: the webhook's settings, see `launchers.webhook`.
        every_s: look again after so long; None to look once.
        home: see above.
        storage: see above.
        stopping: asked between looks.
        on_told: called with each notice that was delivered.

    Raises:
        SpecError: the file is not valid.
        StudyNotFoundError: no such study.
    """
    settings = webhook.read_settings(file)
    with opened_study(name, storage, home or default_home()) as study:
        while True:
            over = False
            try:
                for notice in tell_once(study, settings):
                    on_told(notice)
                over = _is_over(study, settings)
            except StorageLostError as error:
                logger.warning("%s", error, extra={"action": "notify"})
            if every_s is None or stopping() or over:
                return
            time.sleep(every_s)


def _is_over(study: Study, settings: webhook.WebhookSettings) -> bool:
    """Tell whether the study has finished and that was told, by whomever, or need not be."""
    ends = [notice for notice in notices.due(study) if notice.event == "finished"]
    return any(
        "finished" not in settings.events or notices.was_sent(study, notice) for notice in ends
    )


def _stamp(identity: str | None = None) -> dict[str, str]:
    """Return when, and an id by which a message that comes twice is known."""
    space = uuid.NAMESPACE_URL
    known = uuid.uuid4() if identity is None else uuid.uuid5(space, identity)
    return {"id": str(known), "at": datetime.now(UTC).isoformat()}
