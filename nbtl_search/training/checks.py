"""Checks of the training side for `doctor`: torch, devices, memory, disk, weights."""

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import timm
import torch
import torchvision

from nbtl_search.errors import NbtlError
from nbtl_search.network.device import (
    FAST_BF16,
    cpu_has,
    has_fast_bf16,
    place,
)
from nbtl_search.spec import ModelSettings, TrainSettings
from nbtl_search.spec.machine import Check

_GB: Final = 1e9
_FREE_GB: Final = 5.0
_SHM_GB: Final = 1.0


def machine(home: Path, *, train: TrainSettings) -> Iterator[Check]:
    """Look at this machine as a worker would find it.

    Args:
        home: where images, weights and checkpoints go.
        train: whose device and precision are asked for.
    """
    yield Check.of("python", f"{platform.python_version()} at {sys.executable}")
    yield Check.of(
        "torch",
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm "
        f"{timm.__version__}",
    )
    yield _device()
    yield _precision(train)
    yield _memory()
    yield _disk(home)
    yield _shared_memory()
    yield _locks(home)


def weights(model: ModelSettings, *, home: Path) -> Check:
    """Say whether the study's weights can be had here without a network."""
    from nbtl_search.network.weights import read_weights  # noqa: PLC0415  (reads a whole file)

    if model.weights == "random":
        return Check.of("weights", "random ones: nothing is transferred")
    if model.weights == "timm":
        found = [*(home / "weights").rglob(f"*{model.name}*")] if home.exists() else []
        says = f"of {model.name}: {'cached' if found else 'not cached'} below {home}"
        hint = "" if found else "the first worker downloads them; without a network, copy them"
        return Check.of("weights", says, warning=hint)
    try:
        read_weights(model, home=home)
    except NbtlError as error:
        return Check.of("weights", str(error), problem="give a file that can be read here")
    return Check.of("weights", f"{model.weights} can be read")


def _device() -> Check:
    n = torch.cuda.device_count()
    if n and torch.cuda.is_available():
        free_gb = [torch.cuda.mem_get_info(index)[0] / _GB for index in range(n)]
        names = ", ".join(
            f"{torch.cuda.get_device_name(index)} ({free:.0f} GB free)"
            for index, free in enumerate(free_gb)
        )
        return Check.of("device", f"{n} GPU: {names}; CUDA {torch.version.cuda}")
    if shutil.which("nvidia-smi"):
        says = f"an NVIDIA driver is here, and torch {torch.__version__} sees no GPU"
        return Check.of("device", says, problem="the driver is too old for this torch, or hidden")
    return Check.of("device", f"CPU, {len(os.sched_getaffinity(0))} cores; no GPU")


def _precision(train: TrainSettings) -> Check:
    try:
        placement = place(train)
    except NbtlError as error:
        return Check.of("precision", str(error), problem="change train.device")
    fast = has_fast_bf16(placement.device)
    if placement.device.type == "cpu":
        there = [name for name in FAST_BF16 if cpu_has(name)] or ["neither AVX512-BF16 nor AMX"]
        reason = f"this CPU has {', '.join(there)}"
    else:
        reason = "this GPU has bf16" if fast else "this GPU has no bf16"
    if train.precision != "auto":
        reason = f"as the study says; {reason}"
    slow = "" if placement.bf16 == fast or train.precision != "bf16" else "bf16 is slow here"
    return Check.of(
        "precision", f"{placement.precision} on {placement.device}: {reason}", warning=slow
    )


def _memory() -> Check:
    memory = psutil.virtual_memory()
    says = f"{memory.available / _GB:.1f} of {memory.total / _GB:.1f} GB free"
    return Check.of("memory", says, warning="" if memory.available > 2 * _GB else "that is little")


def _disk(home: Path) -> Check:
    there = next(path for path in (home, *home.parents) if path.exists())
    free_gb = shutil.disk_usage(there).free / _GB
    advice = "checkpoints and images need more; set NBTL_HOME to another disk"
    says = f"{free_gb:.1f} GB free at {home}"
    return Check.of("disk", says, warning="" if free_gb > _FREE_GB else advice)


def _shared_memory() -> Check:
    shm = Path("/dev/shm")  # noqa: S108  (looked at, not written)
    if not shm.exists():
        return Check.of("shared memory", "there is none", warning="loader processes need it")
    size_gb = shutil.disk_usage(shm).total / _GB
    advice = "loader processes may fail; in a container, --shm-size=2g"
    says = f"{size_gb:.1f} GB at {shm}"
    return Check.of("shared memory", says, warning="" if size_gb >= _SHM_GB else advice)


def _locks(home: Path) -> Check:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        says = f"{home}: {error.strerror or error}"
        return Check.of("home", says, problem="set NBTL_HOME to a folder that can be written")
    return Check.of("home", f"{home} can be written, and has locks")
