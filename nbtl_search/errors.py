"""Every error this package raises on purpose.

::

    NbtlError                      one line on stderr, exit code 2
    ├── SpecError (ValueError)     a study, recipe or space that cannot be meant
    │   └── DeviceError                  it names a device that is not on this machine
    ├── DataError (ValueError)     a dataset that is missing, wrong or damaged
    ├── WeightsError (ValueError)  weights that cannot be had or do not fit the model
    │   └── MethodError                  they lack what a method of the recipe needs
    ├── StorageError (RuntimeError)      the database
    │   ├── StorageLostError             it does not answer now; waiting may help
    │   └── SchemaError                  its tables are older or newer than this code
    ├── StudyNotFoundError (LookupError)
    ├── StudyExistsError (ValueError)    the name is taken by another specification
    └── TrialError (RuntimeError)        a trial that cannot go on; `cause` says why
        ├── DivergedError                the loss is not finite
        ├── OutOfMemoryError             also with the smallest micro-batch
        ├── InfeasibleError              the recipe asks for what network, weights or data lack
        └── FencedError                  another worker has taken the trial over

A message has three parts: the invariant, the values received, and what to do.
"""

from typing import ClassVar, Final, Literal

UPGRADE_COMMAND: Final = "nbtl-search db upgrade"
"""The command that mends a `SchemaError`."""

EXIT_CODE: Final = 2
"""Of a process that was refused: the user can mend it, and another try would not."""


class NbtlError(Exception):
    """Base of all errors that are the user's to mend, not the program's."""


class SpecError(NbtlError, ValueError):
    """A specification, recipe or search space that is not valid."""


class DeviceError(SpecError):
    """A device that this machine does not have; another machine may."""


class DataError(NbtlError, ValueError):
    """A dataset that is unknown, incomplete, damaged or of another size than stated."""


class WeightsError(NbtlError, ValueError):
    """Pre-trained weights that cannot be read, found or fitted to the model."""


class MethodError(WeightsError):
    """Weights that are as they should be, and lack what a method of the recipe needs."""


class StorageError(NbtlError, RuntimeError):
    """The database refuses what is asked of it."""


class StorageLostError(StorageError):
    """The database does not answer at the moment; it may later."""


class SchemaError(StorageError):
    """The tables of the database are missing, or of another version than this code."""


class StudyNotFoundError(NbtlError, LookupError):
    """No study of this name is in the database."""


class StudyExistsError(NbtlError, ValueError):
    """A study of this name exists and has another specification."""


class TrialError(NbtlError, RuntimeError):
    """A trial cannot go on; `cause` is what the ledger records."""

    cause: ClassVar[Literal["infra", "diverged", "oom", "infeasible"]] = "infra"


class DivergedError(TrialError):
    """The loss or a parameter is no longer finite."""

    cause = "diverged"


class OutOfMemoryError(TrialError):
    """The device's memory does not hold even one image of the batch at a time."""

    cause = "oom"


class InfeasibleError(TrialError):
    """The recipe cannot be trained: network, weights or data lack what it asks for."""

    cause = "infeasible"


class FencedError(TrialError):
    """The lease of this trial belongs to another worker now."""
