"""How fast a recipe trains on a device, and what memory it takes there: measured, not guessed."""

from pydantic import Field

from nbtl_search.spec.values import Value


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
