"""Machine: what `doctor` checked of it, and how fast it trains a recipe."""

from typing import Literal

from pydantic import Field

from nbtl_search.spec.values import Value


class Check(Value):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "problem"]
    says: str = Field(description="what was found")
    advice: str = Field("", description="what to do, where it is not well")

    @classmethod
    def of(cls, name: str, says: str, *, problem: str = "", warning: str = "") -> "Check":
        """Return a check that is well unless there is advice for a problem or a warning."""
        if problem:
            return cls(name=name, state="problem", says=says, advice=problem)
        return cls(name=name, state="warning" if warning else "ok", says=says, advice=warning)


class Speed(Value):
    """What a few real batches gave."""

    device: str
    precision: str
    update_s: float = Field(ge=0, description="median of one update of the weights")
    update_low_s: float = Field(ge=0, description="the fastest")
    update_high_s: float = Field(ge=0, description="the slowest")
    n_measured: int = Field(ge=1, description="updates measured, after warm-up")
    validation_s: float = Field(ge=0, description="one pass over the validation images")
    n_updates: int = Field(ge=1, description="of an epoch")
    batch_size: int = Field(ge=1)
    micro_batch: int = Field(ge=1, description="images per forward that the memory held")
    peak_mb: float = Field(ge=0, description="of the device's memory; on a CPU of the process")
    device_mb: float = Field(ge=0, description="memory of the device, or of the machine")
    checkpoint_mb: float = Field(ge=0, description="one checkpoint on the disk")

    @property
    def epoch_s(self) -> float:
        """Seconds of one epoch: updates and validation."""
        return self.n_updates * self.update_s + self.validation_s

    @property
    def images_per_s(self) -> float:
        """Training images per second."""
        return self.batch_size / self.update_s if self.update_s else 0.0
