"""The words beside a trial in the dashboard, in Markdown."""

import re

from nbtl_search.study.records import TrialRecord


def of(trial: TrialRecord, *, n_epochs: int) -> str:
    """Return the note of a trial, which is where its page has room for a picture."""
    picture = f"![learning curve](/learning-curve/{trial.trial_id}.svg?epochs={trial.n_epochs})"
    lines = [picture, "", f"{trial.n_epochs} of {n_epochs} epochs, {trial.state}"]
    if trial.value is not None and trial.best_epoch is not None:
        lines[-1] += f"; best {trial.value:.2f} % at epoch {trial.best_epoch}"
    if trial.n_attempts > 1:
        lines[-1] += f"; {trial.n_attempts} attempts"
    if trial.cause or trial.message:
        lines += ["", _escaped(": ".join(filter(None, [trial.cause, trial.message]))[:500])]
    return "\n".join(lines)


def heading(trial: TrialRecord) -> str:
    """Return what a picture of a trial is called."""
    return f"Trial {trial.number}{f' ({trial.name})' if trial.name else ''}"


def _escaped(text: str) -> str:
    """Escape every character that Markdown could take for its own, and keep it in one line."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))
