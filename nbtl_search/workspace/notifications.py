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
from nbtl_search.study.notifications import Notification
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
        on_sent: Callable[[Notification], None] = lambda _: None,
    ) -> None:
        """Send what is due of a study, once, or until the message that it has finished."""
        settings = notifications.read_settings(file)
        with self.workspace.open_study(name) as study:
            while True:
                over = False
                try:
                    due = notifications.due(study)
                    for notification in send_due(study, settings, due):
                        on_sent(notification)
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
        NbtlError: the message was not accepted.
    """
    settings = notifications.read_settings(file)
    notifications.send(settings, {"event": "test", "text": "nbtl-search can reach you", **_stamp()})


def send_due(
    study: Study, settings: notifications.WebhookSettings, due: list[Notification]
) -> list[Notification]:
    """Send what is due and was not sent; return what was sent. Failures are tried again later.

    Raises:
        StorageLostError: the database does not answer.
    """
    sent = []
    for notification in due:
        if notification.event not in settings.events:
            continue
        if not notifications.claim(study, notification):  # before: of many watchers one sends it
            continue
        message = {
            "event": notification.event,
            "study": notification.study,
            "subject": notification.subject,
            "text": notification.text,
            "details": notification.details,
            **_stamp(f"{study.uid}/{notification.event}/{notification.subject}"),
        }
        try:
            notifications.send(settings, message)
        except NbtlError as error:
            logger.warning("%s", error, extra={"action": "notify"})
            continue
        notifications.mark_sent(study, notification)
        sent.append(notification)
    return sent


def _is_over(
    study: Study, settings: notifications.WebhookSettings, due: list[Notification]
) -> bool:
    """Tell whether the study has finished and that was sent, by whomever, or need not be."""
    ends = [notification for notification in due if notification.event == "finished"]
    return any(
        "finished" not in settings.events or notifications.was_sent(study, notification)
        for notification in ends
    )


def _stamp(identity: str | None = None) -> dict[str, str]:
    """Return when, and an id by which a message that comes twice is known."""
    known = uuid.uuid4() if identity is None else uuid.uuid5(uuid.NAMESPACE_URL, identity)
    return {"id": str(known), "at": datetime.now(UTC).isoformat()}
