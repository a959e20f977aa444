"""A trainer process: which failures it says are the recipe's, and which are the machine's."""

import time

import pytest
import safetensors.torch

from nbtl_search.network.weights import read_weights
from nbtl_search.spec import Dials, Facts
from nbtl_search.training import checkpoint
from nbtl_search.training.run import Run
from nbtl_search.worker import protocol
from nbtl_search.worker.child import Child
from nbtl_search.worker.settings import TRAINER

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def open_trainer(tmp_path_factory, tiny_prepared, tiny_home):
    """Start trainers, each with a study's data and weights open; end them afterwards."""
    started = []

    def start(recipe):
        log = tmp_path_factory.mktemp("log") / "trainer.log"
        child = Child(TRAINER, log=log, n_threads=1)
        started.append(child)
        facts = Facts(
            n_blocks=5,
            n_classes=3,
            n_train=tiny_prepared.n_train,
            n_val=tiny_prepared.n_val,
            n_test=tiny_prepared.n_test,
            data_digest=tiny_prepared.digest,
            weights_digest=read_weights(recipe.model, home=tiny_home).digest,
        )
        plain = recipe.replace(dials=Dials())
        child.send(protocol.Open(recipe=plain, facts=facts, home=str(tiny_home)))
        assert isinstance(answer(child), protocol.Ready)
        return child

    yield start
    for child in started:
        child.kill()


@pytest.fixture(scope="module")
def trainer(open_trainer, tiny_recipe):
    return open_trainer(tiny_recipe(methods={"bss_k": 9}))


def answer(child):
    """Return the next report that is not about what goes on."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        report = child.poll(1.0)
        if report is not None and report.kind not in {"started", "heartbeat", "trained"}:
            return report
    return pytest.fail("no answer")


def ended(child, recipe, folder, until=1):
    child.send(protocol.Train(recipe=recipe, checkpoints=str(folder), until=until))
    return answer(child)


def test_what_the_network_or_the_batch_lacks_is_the_recipes(trainer, tiny_recipe, tmp_path):
    recipe = tiny_recipe(dials={"bss": 1e-3}, methods={"bss_k": 9})
    failed = ended(trainer, recipe, tmp_path)
    assert (failed.kind, failed.cause) == ("failed", "infeasible")
    assert "micro-batches of 9 images or more" in failed.message


def test_what_the_weights_never_held_is_the_recipes(open_trainer, tiny_recipe, tmp_path, tiny_home):
    given = read_weights(tiny_recipe().model, home=tiny_home).state
    file = tmp_path / "headless.safetensors"
    safetensors.torch.save_file(
        {name: value for name, value in given.items() if not name.startswith("fc.")}, file
    )
    model = {"weights": str(file)}
    child = open_trainer(tiny_recipe(model=model))
    failed = ended(child, tiny_recipe(model=model, dials={"distill": 1.0}), tmp_path / "one")
    assert (failed.kind, failed.cause) == ("failed", "infeasible")
    assert "must hold the source classifier" in failed.message
    # The same trainer, and another recipe.
    assert ended(child, tiny_recipe(model=model), tmp_path / "two").kind == "paused"
    file.unlink()
    failed = ended(child, tiny_recipe(model=model, dials={"distill": 1.0}), tmp_path / "one")
    assert (failed.kind, failed.cause) == ("failed", "user_error"), "this machine lost its file"


def test_a_checkpoint_that_does_not_fit_is_not_the_recipes(
    trainer, tiny_recipe, tiny_prepared, tiny_home, tmp_path, monkeypatch
):
    recipe = tiny_recipe(methods={"bss_k": 9})
    monkeypatch.setattr(checkpoint, "VERSION", 0)
    checkpoint.save(tmp_path, Run(recipe, prepared=tiny_prepared, home=tiny_home))
    failed = ended(trainer, recipe, tmp_path)
    assert (failed.kind, failed.cause) == ("failed", "user_error")
    assert "checkpoint version" in failed.message


def test_a_device_that_is_gone_is_not_the_recipes(trainer, tiny_recipe, tmp_path):
    recipe = tiny_recipe(train={"device": "cpu:3"}, methods={"bss_k": 9})
    failed = ended(trainer, recipe, tmp_path)
    assert (failed.kind, failed.cause) == ("failed", "user_error")


def test_divergence_and_what_is_unknown_are_called_as_before(trainer, tiny_recipe, tmp_path):
    methods = {"bss_k": 9}
    diverged = ended(
        trainer, tiny_recipe(dials={"lr_high": 1e30}, methods=methods), tmp_path / "a", until=2
    )
    assert (diverged.kind, diverged.cause) == ("failed", "diverged")
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "000001-00000000.ckpt").mkdir()
    unreadable = ended(trainer, tiny_recipe(methods=methods), folder)
    assert (unreadable.kind, unreadable.cause) == ("failed", "infra")
    assert unreadable.message.startswith("IsADirectoryError")
