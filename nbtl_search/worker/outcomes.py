"""How a trial ended, from what its trainer sent."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nbtl_search.spec import Epoch, best_epoch
from nbtl_search.study.lease import FinalResult, Outcome
from nbtl_search.worker import protocol


def of_epochs(
    state: Literal["complete", "pruned"],
    epochs: Sequence[Epoch],
    *,
    cause: str | None = None,
    message: str | None = None,
) -> Outcome:
    """Return the end of a trial whose value is the best of these epochs."""
    best = best_epoch(epochs)
    return Outcome(
        state=state,
        value=None if best is None else best.val_top1,
        best_epoch=None if best is None else best.epoch,
        cause=cause,
        message=message,
    )


def of_scores(scores: protocol.Scores, folder: Path) -> FinalResult:
    """Return the result of a final run that left its weights in this folder."""
    return FinalResult(
        **scores.model_dump(),
        predictions=(folder / "predictions.npz").read_bytes(),
        host=socket.gethostname(),
        folder=str(folder),
    )
