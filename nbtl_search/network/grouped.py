"""Grouped convolutions that train in fp32 inside a network that trains in bf16.

On the CPUs that have bf16 at all, some grouped convolutions are several times slower in it than in
fp32 (pytorch issue 183815), and a network of depthwise convolutions spends most of a step there.
Which ones are, depends on the CPU and on torch: it is measured once for each, and kept.
"""

import contextlib
import functools
import hashlib
import json
import platform
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from nbtl_search.errors import DataError
from nbtl_search.files.atomic import write_durably
from nbtl_search.files.shared_folder import alone, writing_below
from nbtl_search.network.device import seeded

# One shape stands for all of its kind: the ratio hardly changes with the number of channels.
_CHANNELS: Final = 96
_IMAGES: Final = 8
_SIDE_PX: Final = 28
_REPEATS: Final = 5
_WORTH_IT: Final = 1.2
"""Times slower from which fp32 is taken: it costs conversions, and the measurement has noise."""


class _InFp32:
    """Forward pass of a convolution in fp32 while it trains, whatever is around it."""

    training: bool

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's name
        # An evaluation has no backward pass, which is what is slow.
        if not self.training:
            return self._convolve(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._convolve(input.float())

    def _convolve(self, input: Tensor) -> Tensor:  # noqa: A002
        found: Tensor = super().forward(input)  # type: ignore[misc]
        return found


_IN_FP32: dict[type[nn.Conv2d], type[nn.Conv2d]] = {}


def train_in_fp32(model: nn.Module, *, home: Path) -> int:
    """Let the grouped convolutions that are slow in bf16 train in fp32; return how many they are.

    Only the class of a module changes: its parameters and hooks are the same objects, the keys of
    the state dict stay, and in evaluation mode it computes as before.

    Args:
        model: the network, in its place.
        home: below it is kept what was measured on machines like this one.
    """
    found = slowdowns({kind_of(one) for one in _grouped(model)}, home=home)
    return compute_in_fp32(model, {kind for kind in found if found[kind] >= _WORTH_IT})


def compute_in_fp32(model: nn.Module, kinds: Collection[str]) -> int:
    """Let the grouped convolutions of these kinds train in fp32, and no others; return how many."""
    n = 0
    for one in _grouped(model):
        plain = type(one).__mro__[2] if isinstance(one, _InFp32) else type(one)
        chosen = kind_of(one) in kinds
        one.__class__ = _in_fp32(plain) if chosen else plain
        n += chosen
    return n


def kinds_in_fp32(model: nn.Module) -> list[str]:
    """Return the kinds of grouped convolutions that train in fp32, in order."""
    return sorted({kind_of(one) for one in _grouped(model) if isinstance(one, _InFp32)})


def _grouped(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


def _in_fp32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """Return the subclass of a kind of convolution; timm has several of its own."""
    if kind not in _IN_FP32:
        _IN_FP32[kind] = type(kind.__name__, (_InFp32, kind), {"__doc__": kind.__doc__})
    return _IN_FP32[kind]


def kind_of(convolution: nn.Conv2d) -> str:
    """Return what the speed of a grouped convolution depends on, such as 'depthwise 3x3 / 2'."""
    depthwise = convolution.groups == convolution.in_channels
    height, width = convolution.kernel_size
    name = "depthwise" if depthwise else f"{convolution.groups} groups"
    return f"{name} {height}x{width} / {max(convolution.stride)}"


def slowdowns(kinds: Iterable[str], *, home: Path) -> dict[str, float]:
    """Return how many times slower in bf16 a training step of each kind is on this machine.

    What is kept below home was measured on a machine with this CPU, torch and number of threads;
    processes that ask at once get one answer, where the file system has locks. A run that is
    resumed goes on as it began in any case: its kinds are in the checkpoint.
    """
    wanted = sorted(kinds)
    target = home / "machines" / f"{_machine()}.json"
    known = _read(target)
    if not all(kind in known for kind in wanted):
        # On a disk that takes nothing it is measured by each process.
        with contextlib.suppress(DataError), writing_below(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            with alone(target):
                known = _read(target)
                known |= {kind: _slowdown(kind) for kind in wanted if kind not in known}
                write_durably(target, json.dumps(known, indent=1).encode())
    return {kind: known[kind] if kind in known else _slowdown(kind) for kind in wanted}


def _machine() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        about = sorted({line for line in lines if line.startswith(("model name", "flags"))})
        return _named(*about)
    return _named(platform.machine(), platform.processor())


def _named(*about: str) -> str:
    text = "\n".join((*about, torch.__version__, str(torch.get_num_threads())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {str(kind): float(value) for kind, value in json.loads(path.read_bytes()).items()}
    return {}


@functools.cache
def _slowdown(kind: str) -> float:
    with seeded(0):  # the weights of an example are no part of a run's random numbers
        convolution: Any = _example(kind)
    convolution = convolution.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(
        _IMAGES, convolution.in_channels, _SIDE_PX, _SIDE_PX, generator=generator
    ).to(memory_format=torch.channels_last)
    # In turns, and the quickest of each: what else the machine does must not decide.
    turns = [
        (_step_s(convolution, images, bf16=True), _step_s(convolution, images, bf16=False))
        for _ in range(_REPEATS)
    ]
    in_bf16, in_fp32 = (min(column) for column in zip(*turns, strict=True))
    return float(round(in_bf16 / in_fp32, 2))


def _example(kind: str) -> nn.Conv2d:
    what, _, stride = kind.rpartition(" / ")
    name, _, kernel = what.rpartition(" ")
    height, width = (int(side) for side in kernel.split("x"))
    groups = _CHANNELS if name == "depthwise" else int(name.partition(" ")[0])
    channels = max(1, round(_CHANNELS / groups)) * groups
    if name != "depthwise":  # more than one channel a group, or it would be depthwise
        channels *= 2
    return nn.Conv2d(
        channels,
        channels,
        (height, width),
        stride=int(stride),
        padding=(height // 2, width // 2),
        groups=groups,
        bias=False,
    )


def _step_s(convolution: nn.Conv2d, images: Tensor, *, bf16: bool) -> float:
    """Return the processor seconds of a forward and a backward pass, conversions included."""
    images = images.clone().requires_grad_()
    started = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        # What comes before is in bf16, and so is what comes after.
        made = convolution(images.bfloat16() if bf16 else images.bfloat16().float())
    made.bfloat16().sum().backward()
    return time.process_time() - started
