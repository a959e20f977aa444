"""Notifications of a workspace's studies: signed messages that say what became of them.

The arguments of the methods are explained at the functions of `nbtl_search.api`.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nbtl_search.errors import NbtlError, StorageLostError
from nbtl_search.study import notifications
from nbtl_search.study.notifications import Notice
from nbtl_search.study.store import Study
from nbtl_search.workspace.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notifications:
    """The messages about a workspace's studies."""

    workspace: Workspace

    def send(
        self,
        name: str,
        file: Path,
        *,
        every_s: float | None = None,
        stopping: Callable[[], bool] = lambda: False,
        on_told: Callable[[Notice], None] = lambda _: None,
    ) -> None:
        """Send what is due of a study, once, or until the message that it has finished."""
        settings = notifications.read_settings(file)
        with self.workspace.open_study(name) as study:
            while True:
                over = False
                try:
                    due = notifications.due(study)
                    for notice in send_due(study, settings, due):
                        on_told(notice)
                    over = _is_over(study, settings, due)
                except StorageLostError as error:
                    logger.warning("%s", error, extra={"action": "notify"})
                if every_s is None or stopping() or over:
                    return
                time.sleep(every_s)


def send_test(file: Path) -> None:
    """Send a message that says that messages arrive.

    Raises:
        SpecError: the file is not valid.
        NbtlError: the message was not taken.
    """
    settings = notifications.read_settings(file)
    notifications.send(settings, {"event": "test", "text": "nbtl-search can reach you", **_stamp()})


def send_due(
    study: Study, settings: notifications.WebhookSettings, due: list[Notice]
) -> list[Notice]:
    """Send what is due and was not sent; return what was sent. Failures are tried again later.

    Raises:
        StorageLostError: the database does not answer.
    """
    sent = []
    for notice in due:
        # The claim comes before the message, so that of many watchers one sends it.
        if notice.event not in settings.events or not notifications.claim(study, notice):
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
            notifications.send(settings, message)
        except NbtlError as error:
            logger.warning("%s", error, extra={"action": "notify"})
            continue
        notifications.mark_sent(study, notice)
        sent.append(notice)
    return sent


def _is_over(study: Study, settings: notifications.WebhookSettings, due: list[Notice]) -> bool:
    """Tell whether the study has finished and that was sent, by whomever, or need not be."""
    ends = [notice for notice in due if notice.event == "finished"]
    return any(
        "finished" not in settings.events or notifications.was_sent(study, notice)
        for notice in ends
    )


def _stamp(identity: str | None = None) -> dict[str, str]:
    """Return when, and an id by which a message that comes twice is known."""
    known = uuid.uuid4() if identity is None else uuid.uuid5(uuid.NAMESPACE_URL, identity)
    return {"id": str(known), "at": datetime.now(UTC).isoformat()}
