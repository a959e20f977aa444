"""The end of a final run: train+val, ten crops, the test images, and the folder that is kept."""

import copy
import errno
import hashlib
import json
import os
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from nbtl_search.cli.training import train_command
from nbtl_search.data.loader import EvalBatches, TenCropBatches
from nbtl_search.data.prepared import prepare
from nbtl_search.errors import DataError, DivergedError
from nbtl_search.files.atomic import write_durably
from nbtl_search.network.device import Placement
from nbtl_search.spec import Epoch, Recipe, write_toml
from nbtl_search.training.evaluation import evaluate, running_ten_crop
from nbtl_search.training.final_run import (
    ScoredImages,
    ScoringProgress,
    keep,
    score_test,
    scored,
)
from nbtl_search.training.run import Run, Step, train

CPU = Placement(device=torch.device("cpu"), bf16=False)
N_TRAIN, N_VAL, N_TEST = 24, 9, 9


@pytest.fixture
def make_run(tiny_prepared, tiny_home, tiny_recipe):
    def make(**sections):
        recipe = tiny_recipe(**({"data": {"train_on": "train+val"}} | sections))
        return Run(recipe, prepared=tiny_prepared, home=tiny_home)

    return make


@pytest.fixture
def ended(make_run):
    run = make_run(train={"epochs": 1, "batch_size": 7})
    list(train(run))
    return run


@pytest.fixture
def result(ended, tiny_home) -> ScoredImages:
    *_, last = score_test(ended, home=tiny_home)
    assert isinstance(last, ScoredImages)
    return last


class Wide(nn.Module):
    """Any network: a mean per channel and quadrant, spread over many classes."""

    matrix: torch.Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("matrix", torch.randn(12, n_classes, generator=generator))
        self.n_most = 0

    def forward(self, images):
        self.n_most = max(self.n_most, len(images))
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) @ self.matrix


class TestTrainAndValidation:
    def test_both_splits_are_trained_on_and_nothing_is_validated(self, make_run):
        run = make_run(train={"batch_size": 3})
        events = list(train(run))
        n_updates = (N_TRAIN + N_VAL) // 3
        expected: list[Step | int] = []
        for epoch in (1, 2):
            expected += [
                Step(epoch=epoch, update=update, n_updates=n_updates)
                for update in range(1, n_updates + 1)
            ]
            expected.append(epoch)
        assert [e.epoch if isinstance(e, Epoch) else e for e in events] == expected
        for epoch in run.history:
            assert epoch.n_images == N_TRAIN + N_VAL
            assert (epoch.val_loss, epoch.val_top1, epoch.val_top5) == (None, None, None)
            assert Epoch.parse_json(epoch.model_dump_json()) == epoch
            assert Epoch.parse(epoch.plain()) == epoch
        assert run.best is None

    def test_the_labels_of_an_epoch_are_those_of_both_splits(self, make_run, tiny_prepared):
        run = make_run(train={"batch_size": 3}, augment={"mixup": 0.0, "label_smoothing": 0.0})
        run.begin_epoch()
        seen = torch.cat([batch.targets.argmax(dim=1) for batch in run.batches()])
        both = np.concatenate([tiny_prepared.labels("train"), tiny_prepared.labels("val")])
        np.testing.assert_array_equal(np.bincount(seen.numpy()), np.bincount(both))

    def test_resuming_at_any_step_is_bit_identical(self, make_run):
        whole = make_run()
        states = [copy.deepcopy(whole.state_dict()) for _ in train(whole)]
        for saved in states:
            resumed = make_run()
            resumed.load_state_dict(saved)
            list(train(resumed))
            assert all(
                a.same_result(b) for a, b in zip(whole.history, resumed.history, strict=True)
            )
            theirs = resumed.network.model.state_dict()
            for name, value in whole.network.model.state_dict().items():
                assert torch.equal(value, theirs[name]), name

    def test_weights_that_are_not_finite_end_the_run_at_its_last_epoch(self, make_run):
        run = make_run(train={"epochs": 1})
        steps = train(run)
        for _ in range(run.n_updates):
            assert isinstance(next(steps), Step)
        run.network.model.bn1.running_var.fill_(torch.nan)
        with pytest.raises(DivergedError, match="largest weight must be finite, got nan"):
            next(steps)

    def test_a_checkpoint_does_not_cross_over(self, make_run):
        saved = make_run(data={"train_on": "train"}).state_dict()
        with pytest.raises(ValueError, match=r"differs in data\.train_on;"):
            make_run().load_state_dict(saved)

    def test_a_checkpoint_of_before_there_was_a_choice_goes_on(self, make_run):
        saved = make_run(data={"train_on": "train"}).state_dict()
        assert "train_on" not in saved["recipe"]
        make_run(data={"train_on": "train"}).load_state_dict(saved)

    def test_the_command_says_that_nothing_is_validated(self, tiny_recipe, tiny_home, tmp_path):
        file = tmp_path / "recipe.toml"
        file.write_text(write_toml(tiny_recipe(train={"epochs": 1})), encoding="utf-8")
        options = [str(file), "--set", "data.train_on='train+val'", "--home", str(tiny_home)]
        done = CliRunner().invoke(train_command, options, catch_exceptions=False)
        assert done.exit_code == 0
        assert "not validated" in done.stdout
        assert "best" not in done.stdout
        done = CliRunner().invoke(train_command, [*options, "--json"], catch_exceptions=False)
        found = json.loads(done.stdout)
        assert found["best"] is None
        assert found["last"]["n_images"] == 32  # of 33, in batches of eight
        assert "val_top1" not in found["last"]


class TestTenCrops:
    @pytest.mark.parametrize("micro_batch", [1, 4, 10, 37])
    def test_the_mean_softmax_agrees_with_float64(
        self, tiny_data, tiny_home, make_run, micro_batch
    ):
        prepared = prepare(tiny_data, home=tiny_home, splits=("test",))
        image_format = replace(
            make_run().network.image_format, crop_pct=0.8, interpolation="bicubic"
        )
        model = Wide(7)
        batches = TenCropBatches(prepared, "test", format=image_format, batch_size=2, device="cpu")
        parts = list(running_ten_crop(model, batches, placement=CPU, micro_batch=micro_batch))
        assert len(parts) == len(batches) == 5
        assert model.n_most <= micro_batch
        got = torch.cat([mean for mean, _ in parts])
        assert got.dtype == torch.float32
        np.testing.assert_array_equal(
            torch.cat([labels for _, labels in parts]), prepared.labels("test")
        )
        want = [
            self.mean_softmax(prepared.original("test", i), image_format, model)
            for i in range(N_TEST)
        ]
        np.testing.assert_allclose(got.numpy(), np.stack(want), rtol=2e-5, atol=1e-7)

    def mean_softmax(self, pixels, image_format, model):
        """Ten crops by slices and everything in float64, but for the network."""
        px, side = image_format.image_px, image_format.resized_px
        height, width = pixels.shape[:2]
        assert height > width
        resized = Image.fromarray(pixels).resize(
            (side, side * height // width), Image.Resampling.BICUBIC
        )
        mean, std = np.array(image_format.mean) * 255, np.array(image_format.std) * 255
        total = np.zeros(7)
        for view in (np.asarray(resized), np.asarray(resized)[:, ::-1]):
            down, right = view.shape[0] - px, view.shape[1] - px
            middle = (round(down / 2), round(right / 2))
            for top, left in ((0, 0), (0, right), (down, 0), (down, right), middle):
                crop = (view[top : top + px, left : left + px] - mean) / std
                images = torch.from_numpy(crop.transpose(2, 0, 1)[None].copy()).float()
                logits = model(images).double().numpy()[0]
                shares = np.exp(logits - logits.max())
                total += shares / shares.sum()
        return total / 10


class TestScoreTest:
    def test_it_reports_as_it_goes_and_ends_with_the_result(self, ended, tiny_home):
        *events, last = score_test(ended, home=tiny_home)
        assert isinstance(last, ScoredImages)
        readings = [event for event in events if isinstance(event, ScoringProgress)]
        assert readings == events
        # Two batches of seven single crops, then one image's ten crops at a time.
        assert [reading.n_done for reading in readings] == [0, 0, *range(1, N_TEST + 1)]
        assert {reading.n_images for reading in readings} == {N_TEST}

    def test_the_single_crop_is_the_usual_evaluation(self, ended, result, tiny_data, tiny_home):
        prepared = prepare(tiny_data, home=tiny_home, splits=("test",))
        batches = EvalBatches(
            prepared, "test", format=ended.network.image_format, batch_size=4, device="cpu"
        )
        want = evaluate(ended.network.model, batches, placement=CPU)
        assert (result.score.top1, result.score.top5) == pytest.approx((want.top1, want.top5))
        assert result.score.top5 == 100  # of three classes
        np.testing.assert_array_equal(result.predictions.labels, prepared.labels("test"))
        assert result.score.top1 == pytest.approx(
            100 * np.mean(result.predictions.single == result.predictions.labels)
        )

    def test_the_ten_crop_accuracy_is_that_of_the_probabilities(self, result):
        assert result.score.n_images == N_TEST
        assert result.predictions.probabilities.shape == (N_TEST, 3)
        assert result.predictions.probabilities.dtype == np.float32
        np.testing.assert_allclose(result.predictions.probabilities.sum(axis=1), 1, atol=1e-6)
        right = result.predictions.probabilities.argmax(axis=1) == result.predictions.labels
        assert result.score.ten_crop_top1 == pytest.approx(100 * right.mean())
        assert result.score.ten_crop_top5 == 100

    def test_it_reads_no_other_images(self, ended, tmp_path):
        list(score_test(ended, home=tmp_path))
        made = (tmp_path / "data").glob("*-pillow-*/*")
        assert {path.name.strip(".").partition("-")[0] for path in made} == {"test"}

    def test_data_without_the_test_split_are_refused(self, ended, tiny_prepared):
        with pytest.raises(DataError, match="got 'test' of \\('train', 'val'\\)"):
            list(scored(ended, tiny_prepared))

    def test_other_data_are_refused_before_anything_is_read(self, ended, tiny_home):
        ended.data_digest = "0" * 64
        with pytest.raises(DataError, match="put the first images back"):
            next(score_test(ended, home=tiny_home))

    def test_a_dataset_without_test_images_is_refused(self, tiny_recipe, tiny_home):
        recipe: Recipe = tiny_recipe(data={"test_fraction": 0.0}, train={"epochs": 1})
        run = Run(recipe, prepared=prepare(recipe.data, home=tiny_home), home=tiny_home)
        with pytest.raises(DataError, match="n_test >= 1, got 0"):
            next(score_test(run, home=tiny_home))

    def test_the_caller_keeps_its_switches_and_random_state(self, ended, tiny_home):
        before = torch.get_rng_state()
        for _ in score_test(ended, home=tiny_home):
            assert not torch.are_deterministic_algorithms_enabled()
            assert torch.equal(torch.get_rng_state(), before)

    def test_logits_that_are_not_finite_are_no_result(self, ended, tiny_home):
        with torch.no_grad():
            ended.network.model.fc.bias[0] = torch.nan
        with pytest.raises(DivergedError, match="a logit of the test images"):
            list(score_test(ended, home=tiny_home))


class TestKeep:
    def test_timm_loads_what_is_kept_and_computes_the_same(self, ended, result, tmp_path):
        digest = keep(ended, tmp_path / "final" / "3", result.predictions)
        folder = tmp_path / "final" / "3"
        assert sorted(path.name for path in folder.iterdir()) == [
            "about.json", "model.safetensors", "predictions.npz",
        ]  # fmt: skip
        assert [path.name for path in folder.parent.iterdir()] == ["3"]
        content = (folder / "model.safetensors").read_bytes()
        assert digest == hashlib.sha256(content).hexdigest()
        state = safetensors.torch.load(content)
        assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}
        model = timm.create_model("test_resnet", num_classes=3).eval()
        model.load_state_dict(state, strict=True)
        images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(
                model(images), ended.network.model.eval()(images), rtol=1e-5, atol=1e-6
            )
        for name, value in ended.network.model.state_dict().items():
            assert torch.equal(state[name], value), name

    def test_channels_last_is_undone(self, make_run, tmp_path):
        run = make_run(train={"precision": "bf16"})
        weight = run.network.model.layer1[0].conv1.weight
        assert not weight.is_contiguous()
        keep(run, tmp_path / "0", None)
        state = safetensors.torch.load_file(tmp_path / "0" / "model.safetensors")
        assert torch.equal(state["layer1.0.conv1.weight"], weight)
        assert json.loads((tmp_path / "0" / "about.json").read_text())["precision"] == "bf16"
        assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [
            "about.json", "model.safetensors",
        ]  # fmt: skip

    def test_what_it_is_about(self, ended, result, tmp_path):
        digest = keep(ended, tmp_path / "0", result.predictions)
        about = json.loads((tmp_path / "0" / "about.json").read_text("utf-8"))
        assert about["model"] == "test_resnet"
        assert about["classes"] == ["amber", "blue", "grey"]
        form = ended.network.image_format
        assert about["image_format"] == asdict(form) | {
            "mean": list(form.mean), "std": list(form.std),
        }  # fmt: skip
        assert Recipe.parse(about["recipe"]) == ended.recipe
        assert about["recipe"]["data"]["train_on"] == "train+val"
        assert about["weights_digest"] == digest
        assert about["source_weights_digest"] == ended.network.weights_digest
        assert about["versions"].keys() == {"torch", "timm", "nbtl_search"}
        assert (about["device"], about["precision"]) == ("cpu", "fp32")

    def test_the_predictions_read_back_equal(self, ended, result, tmp_path):
        keep(ended, tmp_path / "0", result.predictions)
        content = BytesIO((tmp_path / "0" / "predictions.npz").read_bytes())
        with np.load(content, allow_pickle=False) as found:
            assert sorted(found) == ["labels", "probabilities", "single"]
            for name in found:
                want = getattr(result.predictions, name)
                assert found[name].dtype == want.dtype
                np.testing.assert_array_equal(found[name], want)

    def test_the_same_run_gives_the_same_bytes_and_replaces_what_was_there(
        self, ended, result, tmp_path
    ):
        folder = tmp_path / "0"
        folder.mkdir()
        (folder / "half").write_text("of an earlier attempt")
        first = keep(ended, folder, result.predictions)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert keep(ended, folder, result.predictions) == first
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert before.keys() == {"about.json", "model.safetensors", "predictions.npz"}
        assert [path.name for path in tmp_path.iterdir()] == ["0"]

    @pytest.mark.parametrize("n_written", [0, 1, 2])
    @pytest.mark.parametrize("earlier", [False, True])
    def test_a_full_disk_leaves_all_or_nothing(
        self, ended, result, tmp_path, monkeypatch, n_written, earlier
    ):
        folder = tmp_path / "0"
        if earlier:
            keep(ended, folder, result.predictions)
        before = sorted(tmp_path.rglob("*"))
        written: list[Path] = []

        def write_until_full(path, *parts):
            if len(written) == n_written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(path)
            write_durably(path, *parts)

        monkeypatch.setattr("nbtl_search.files.atomic.write_durably", write_until_full)
        with pytest.raises(OSError, match="No space left"):
            keep(ended, folder, result.predictions)
        assert len(written) == n_written
        assert sorted(tmp_path.rglob("*")) == before
        assert folder.exists() == earlier

    def test_what_a_killed_writer_left_is_removed_in_time(self, ended, tmp_path):
        fresh, old = tmp_path / ".0-tmp-fresh", tmp_path / ".0-tmp-old"
        for left in (fresh, old):
            left.mkdir()
            (left / "model.safetensors").write_bytes(b"half")
        os.utime(old, (1, 1))
        keep(ended, tmp_path / "0", None)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".0-tmp-fresh", "0"]
