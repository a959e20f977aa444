"""Device of a run, and how exactly it computes: precision, threads, determinism, random state."""

import hashlib
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nbtl_search.errors import DeviceError, SpecError
from nbtl_search.spec import TrainSettings

MAX_LOADERS = 8
# Measured on 2 cores with AVX512-BF16, Inception-v4 at 299 px: fp32 1.4 images/s, bf16 3.5.
FAST_BF16 = ("avx512_bf16", "amx_bf16")
# What the CPU's allocator says; only CUDA's has a class of its own.
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory")


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of the parts, and differs where they do."""
    # Not hash(): Python salts that of a string anew in each process.
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int, *, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators, and restore them afterwards."""
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.manual_seed(seed)
        yield


def random_state() -> dict[str, Any]:
    """Return the state of every global generator, in types that load with weights_only=True."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 the global one
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every global generator to a state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    # A resumed trial may find another number of GPUs, or none. Updates are seeded by their place
    # (`Run.update`), so that nothing of the curve hangs on these.
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The device and the arithmetic of a run."""

    device: torch.device
    bf16: bool
    n_threads: int | None = None
    mixed: bool = False
    """Whether what is slow in bf16 trains in fp32 all the same (`grouped`)."""

    @property
    def precision(self) -> str:
        """Return the arithmetic of most layers; `Run.precision` knows of others."""
        return "bf16" if self.bf16 else "fp32"

    @property
    def memory_format(self) -> torch.memory_format:
        """Return channels_last with bf16 and on CPUs, where convolutions are faster in it.

        Measured on one AVX2 thread in fp32, MobileNetV2 at 112 px, median of 8: 43 images/s
        against 29; Inception-v4 at 299 px: no difference.
        """
        channels_last = self.bf16 or self.device.type == "cpu"
        return torch.channels_last if channels_last else torch.contiguous_format

    @property
    def n_loaders(self) -> int:
        """Return how many processes should decode and augment beside this device.

        A CPU slot has no core to spare. One core augments about 150 images/s at 299 px, and a
        GPU takes several times that.
        """
        if self.device.type == "cpu":
            return 0
        n_cores = (os.cpu_count() or 1) // max(1, torch.cuda.device_count())
        return max(0, min(MAX_LOADERS, n_cores - 1))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run a forward pass in the placement's precision."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            yield

    @contextmanager
    def numerics(self) -> Iterator[None]:
        """Set threads and algorithms for this placement, and restore them afterwards.

        On the CPU algorithms are deterministic, so that a resumed run is bit-identical at one
        thread count. On CUDA cuDNN may choose the fastest ones.
        """
        with ExitStack() as stack:
            if self.n_threads is not None:
                stack.enter_context(threads(self.n_threads))
            if self.device.type == "cpu":
                stack.enter_context(deterministic())
            else:
                stack.enter_context(fastest_convolutions())
            yield


def place(train: TrainSettings) -> Placement:
    """Choose device and precision: what the settings name, or the fastest this machine has.

    Raises:
        SpecError: the device named is unknown.
        DeviceError: it is not on this machine.
    """
    device = _device(train.device)
    chosen = train.precision == "auto"
    bf16 = has_fast_bf16(device) if chosen else train.precision == "bf16"
    return Placement(
        device=device,
        bf16=bf16,
        n_threads=train.n_threads,
        mixed=chosen and bf16 and device.type == "cpu",
    )


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether bf16 is faster than fp32 there: CUDA with bf16, AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return any(cpu_has(capability) for capability in FAST_BF16)
    return False


def cpu_has(capability: str) -> bool:
    """Tell whether the CPU has an instruction set, by the name torch gives it."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get(capability, False))
    older = {
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_bf16": "_is_amx_tile_supported",
    }
    query = getattr(torch.cpu, older[capability], None)
    return bool(query and query())


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use n CPU threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    if n == before:
        yield
        return
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms inside; where an operation has none, torch warns."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_before = torch.is_deterministic_algorithms_warn_only_enabled()
    # Filling fresh memory would only show bugs, and costs time. Torch types this module as empty.
    memory: Any = torch.utils.deterministic
    fill_before = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003 positional there
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_before)
        memory.fill_uninitialized_memory = fill_before


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms inside: all batches of a run have the same shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        message = f"train.device in (auto, cpu, cuda, cuda:N, mps), got {name!r}; choose one"
        raise SpecError(message) from error
    n_there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= n_there:
        message = (
            f"train.device must be on this machine, got {name!r} with {n_there} {device.type} "
            "devices here; use 'auto' or another machine"
        )
        raise DeviceError(message)
    return device


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(part in text for part in OUT_OF_MEMORY_TEXTS)
