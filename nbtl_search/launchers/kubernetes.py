"""Workers as an Indexed Job of Kubernetes: a manifest to look at, change and apply."""

import hashlib
import re
import shlex
from typing import Any, Final

import yaml

from nbtl_search.errors import SpecError
from nbtl_search.spec.study import STUDY_NAME

IMAGE: Final = "nbtl-search:latest"
METRICS_PORT: Final = 9464
_USER: Final = 10001
_WAIT_S: Final = 86_400  # a worker that starts while the database is away waits for it
_START_EVERY_S: Final = 10
_HEAD: Final = """\
# Workers of a study, one GPU each. Before the first `kubectl apply -f`:
#
#   kubectl create secret generic nbtl-storage --from-file=storage_url=PATH
#
# where PATH is a file with one line, postgresql://USER:PASSWORD@HOST:5432/DATABASE. Made by
# {command}
"""
_EVICTED: Final = {"type": "DisruptionTarget", "status": "True"}
_PROBE: Final = (
    f"import urllib.request as r; r.urlopen('http://127.0.0.1:{METRICS_PORT}/healthz', timeout=5)"
)


def manifest(study: str, *, workers: int, image: str = IMAGE) -> str:
    """Return the YAML of a volume and a Job with so many workers.

    A worker that ends with 0 has seen the study end; with 2 it was refused, which another try
    would not change; anything else, and every eviction, is tried again.

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
    name = _name(study)
    words = ["nbtl-search", "launch", study, "--kubernetes", "--workers", str(workers)]
    command = shlex.join(words if image == IMAGE else [*words, "--image", image])
    documents = (_volume(name), _job(name, study, workers, image))
    body = "---\n".join(
        yaml.safe_dump(document, sort_keys=False, width=100) for document in documents
    )
    return _HEAD.format(command=command) + "---\n" + body


def _name(study: str) -> str:
    """Return a name that Kubernetes takes (RFC 1123), another one for each study."""
    plain = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")[:40].strip("-")
    if plain == study:
        return f"nbtl-{plain}"
    return f"nbtl-{plain}-{hashlib.sha256(study.encode()).hexdigest()[:8]}".replace("--", "-")


def _volume(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "100Gi"}},
        },
    }


def _job(name: str, study: str, workers: int, image: str) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "nbtl-search"}},
        "spec": {
            "completionMode": "Indexed",
            "completions": workers,
            "parallelism": workers,
            "backoffLimitPerIndex": 20,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": "worker", "operator": "In", "values": [2],
                        },
                    },
                ]
            },
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": "nbtl-search"}},
                "spec": _pod(name, study, image),
            },
        },
    }  # fmt: skip


def _pod(name: str, study: str, image: str) -> dict[str, Any]:
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_worker(study, image)],
        "volumes": [
            {"name": "home", "persistentVolumeClaim": {"claimName": name}},
            {"name": "cache", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
            {"name": "storage", "secret": {"secretName": "nbtl-storage", "defaultMode": 0o440}},
        ],
    }


def _worker(study: str, image: str) -> dict[str, Any]:
    return {
        "name": "worker",
        "image": image,
        "args": [
            "worker", study, "--wait-s", str(_WAIT_S), "--metrics-port", str(METRICS_PORT),
        ],
        "env": [
            {"name": "NBTL_HOME", "value": "/data"},
            {"name": "NBTL_CACHE", "value": "/cache"},
            {"name": "NBTL_STORAGE_FILE", "value": "/run/secrets/nbtl/storage_url"},
        ],
        "resources": {
            "requests": {"cpu": "4", "memory": "16Gi"},
            "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # It answers once it has found the study: who waits for the database must not be killed.
        "startupProbe": {
            "exec": {"command": ["python", "-c", _PROBE]},
            "periodSeconds": _START_EVERY_S,
            "timeoutSeconds": 15,
            "failureThreshold": _WAIT_S // _START_EVERY_S,
        },
        "livenessProbe": {
            "exec": {"command": ["python", "-c", _PROBE]},
            "periodSeconds": 60,
            "timeoutSeconds": 15,
            "failureThreshold": 5,
        },
        "volumeMounts": [
            {"name": "home", "mountPath": "/data"},
            {"name": "cache", "mountPath": "/cache"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (a volume of the pod's own)
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "storage", "mountPath": "/run/secrets/nbtl", "readOnly": True},
        ],
    }  # fmt: skip
