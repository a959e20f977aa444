"""Kubernetes manifest: workers as an Indexed Job, to look at, change and apply.

What it says, and why, stands in the template beside this module (`kubernetes.yaml`).
"""

import hashlib
import json
import re
import shlex
from importlib.resources import files
from string import Template
from typing import Final

from nbtl_search.errors import EXIT_CODE, SpecError
from nbtl_search.restart_policy import DATABASE_PATIENCE_S, KUBERNETES_RESTARTS
from nbtl_search.spec.study import STUDY_NAME

IMAGE: Final = "nbtl-search:latest"
METRICS_PORT: Final = 9464
_USER: Final = 10001
_START_EVERY_S: Final = 10
_PROBE: Final = (
    f"import urllib.request as r; r.urlopen('http://127.0.0.1:{METRICS_PORT}/healthz', timeout=5)"
)


def manifest(study: str, *, workers: int, image: str = IMAGE) -> str:
    """Return the YAML of a volume and a Job with so many workers.

    Raises:
        SpecError: no study has this name, or no image.
    """
    # Both stand in a comment too, which a line break would end; Kubernetes expands $(NAME).
    if not re.fullmatch(STUDY_NAME, study):
        message = f"a study's name must match {STUDY_NAME}, got {study!r}; see nbtl-search list"
        raise SpecError(message)
    if not re.fullmatch(r"[!-~]+", image):
        message = f"--image must be a name such as {IMAGE}, got {image!r}; give it without spaces"
        raise SpecError(message)
    template = Template(files(__package__).joinpath("kubernetes.yaml").read_text("utf-8"))
    return template.substitute(
        command=_command(study, workers, image),
        name=_name(study),
        workers=workers,
        restarts=KUBERNETES_RESTARTS,
        exit_code=EXIT_CODE,
        user=_USER,
        image=_quoted(image),
        study=_quoted(study),
        wait_s=_quoted(str(DATABASE_PATIENCE_S)),
        port=_quoted(str(METRICS_PORT)),
        probe=_quoted(_PROBE),
        start_every_s=_START_EVERY_S,
        n_starts=DATABASE_PATIENCE_S // _START_EVERY_S,
    )


def _quoted(text: str) -> str:
    """Return a YAML scalar that is this text, whatever it holds; a JSON string in ASCII is one.

    Also for text that looks harmless: `1e3`, `no` and `a: b` are no strings in YAML.
    """
    return json.dumps(text)


def _command(study: str, workers: int, image: str) -> str:
    words = ["nbtl-search", "launch", study, "--kubernetes", "--workers", str(workers)]
    return shlex.join(words if image == IMAGE else [*words, "--image", image])


def _name(study: str) -> str:
    """Return a name that Kubernetes takes (RFC 1123), another one for each study."""
    plain = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")[:40].strip("-")
    if plain == study:
        return f"nbtl-{plain}"
    return f"nbtl-{plain}-{hashlib.sha256(study.encode()).hexdigest()[:8]}".replace("--", "-")
