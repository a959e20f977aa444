"""Tell people: a signed JSON message to an address that only this user's file knows.

The signature is that of many webhooks: `X-NBTL-Signature: t=SECONDS,v1=HEX`, where HEX is the
HMAC-SHA256 of "SECONDS." and the body under the shared secret.
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
from pathlib import Path
from typing import Annotated, Any, Final, Literal, final
from urllib.parse import urlsplit

from pydantic import Field

from nbtl_search.errors import NbtlError, SpecError
from nbtl_search.spec import Value, read_toml

logger = logging.getLogger(__name__)

VERSION: Final = 1
HEADER: Final = "X-NBTL-Signature"


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


def signature(body: bytes, *, secret: str, seconds: int) -> str:
    """Return the header's value for a body sent at this time."""
    signed = hmac.new(secret.encode(), b"%d.%s" % (seconds, body), hashlib.sha256)
    return f"t={seconds},v1={signed.hexdigest()}"


@final
class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A message with a signature goes where it was addressed, or nowhere."""

    def redirect_request(self, *_: object) -> None:
        return None


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
