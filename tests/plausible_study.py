"""A study as real workers leave it: trials through the ledger and Optuna, curves that look real."""

import math
import random

from nbtl_search.ledger.leases import (
    Lease,
    Leases,
    TrialOutcome,
)
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.spec import (
    Budget,
    DataSettings,
    Dials,
    Epoch,
    Facts,
    KnownRecipe,
    SearchSettings,
    StudySpec,
    TrainSettings,
    best_epoch,
)
from nbtl_search.study import sampling
from nbtl_search.study.store import Study

WORKER = "node1-4242-0"


def make_spec(*, n_trials: int = 24, n_epochs: int = 30, name: str = "dtd10") -> StudySpec:
    """Return the specification of a study of photographs of textures."""
    return StudySpec(
        name=name,
        description="Ten kinds of texture: which non-binary fine-tuning fits them?",
        data=DataSettings(dataset="dtd"),
        train=TrainSettings(epochs=n_epochs),
        search=SearchSettings(
            n_startup=8,
            known=(
                KnownRecipe(name="default", reason="the usual practice", dials={"lr_high": 0.0025}),
                KnownRecipe(
                    name="paper-best",
                    reason="paper table 6",
                    dials={
                        "reinit_layers": 2,
                        "lr_high": 0.002,
                        "n_l2sp": "14/22",
                        "alpha": 1e-3,
                        "beta": 1e-3,
                    },
                ),
            ),
        ),
        budget=Budget(n_trials=n_trials),
        facts=Facts(
            n_blocks=22,
            n_classes=10,
            n_train=1200,
            n_val=400,
            n_test=400,
            data_digest="d" * 16,
            weights_digest="w" * 16,
        ),
    )


def fill(study: Study, *, n_trials: int, running: int = 0, failed: int = 0) -> None:
    """Run so many trials to their ends, and leave the last `running` of them in the middle."""
    ledger = Ledger(study.storage.engine, study.id)
    leases = Leases(study.storage.engine, study.id, ladder=study.ladder)
    n_begun = 0
    while n_begun < n_trials or n_begun == study.spec.budget.n_trials:
        lease = leases.grant(WORKER, sampling.asking(study))
        if lease is None:
            break
        n_begun += lease.attempt == 1
        if lease.number >= n_trials - running:
            _train(study, leases, lease, until=min(lease.until, study.spec.train.epochs // 3))
            ledger.heartbeat(
                f"{WORKER}{lease.number}",
                host="node1",
                pid=4242,
                device="cuda:0",
                state="training",
                trial_number=lease.number,
            )
            continue
        done = _train(study, leases, lease, until=lease.until)
        if lease.number >= n_trials - running - failed:
            outcome = TrialOutcome(state="pruned", cause="diverged", message="the loss is *inf*")
            leases.finish(lease, outcome)
        elif lease.until < study.spec.train.epochs:
            leases.pause(lease)
        else:
            best = best_epoch(done)
            assert best is not None
            leases.finish(
                lease,
                TrialOutcome(state="complete", value=best.val_top1, best_epoch=best.epoch),
            )
        _tell(study, ledger)
    _tell(study, ledger)


def _tell(study: Study, ledger: Ledger) -> None:
    for ended in ledger.unnotified():
        sampling.tell(study, ended)
        ledger.mark_notified(ended.trial_id)


def curve(dials: Dials, *, n_epochs: int, n_val: int, seed: int) -> list[Epoch]:
    """Return epochs whose accuracy depends on the dials somewhat as in real fine-tuning."""
    draw = random.Random(seed)
    distance = math.log10(dials.lr_high / 3e-3)
    height = 82 - 14 * distance**2 - 1.5 * abs(dials.reinit_layers - 2)
    height -= 2 * abs(dials.n_l2sp - 14) / 14 + 60 * dials.beta
    speed = 0.08 * n_epochs * (1 + 0.4 * dials.reinit_layers) * (dials.lr_high / 3e-3) ** -0.3
    level = draw.gauss(max(12.0, height), 0.8)
    epochs = []
    for epoch in range(1, n_epochs + 1):
        top1 = 10 + (level - 10) * (1 - math.exp(-epoch / speed)) + draw.gauss(0, 0.9)
        right = min(n_val, max(0, round(top1 / 100 * n_val)))
        epochs.append(
            Epoch(
                epoch=epoch,
                train_loss=2.3 * math.exp(-epoch / speed) + 0.6,
                val_loss=2.3 * math.exp(-epoch / speed) + 0.7,
                val_top1=100 * right / n_val,
                val_top5=min(100.0, 100 * right / n_val + 15),
                lr=dials.lr_high,
                n_images=1200,
                seconds=9.5,
                micro_batch=32,
            )
        )
    return epochs


def _train(study: Study, leases: Leases, lease: Lease, *, until: int) -> list[Epoch]:
    """Record a trial's epochs up to `until`."""
    n_epochs = study.spec.train.epochs
    epochs = curve(
        lease.recipe.dials, n_epochs=n_epochs, n_val=study.facts.n_val, seed=lease.number
    )[:until]
    leases.record(lease, epochs)
    sampling.report(study, lease.trial_id, epochs, n_epochs=n_epochs)
    return epochs
