"""Starting from a regime of the survey: what is appended, with which decay, and what is refused."""

from typing import get_args

import pytest

from nbtl_search import space
from nbtl_search.cli.search import REGIMES
from nbtl_search.errors import SpecError
from nbtl_search.space.regimes import (
    SURVEY,
    SurveyRegime,
    decay_updates,
    starting_recipe,
)
from nbtl_search.spec import Facts, Row
from nbtl_search.workspace.drafts import draft, with_starts

FACTS = Facts(
    n_blocks=22,
    n_classes=10,
    n_train=330,
    n_val=80,
    n_test=80,
    data_digest="d" * 16,
    weights_digest="w" * 16,
)


@pytest.fixture
def study():
    """A study of 20 epochs of 10 updates whose space searches decay in updates."""
    spec = draft("textures", settings=["train.epochs=20", "train.batch_size=32"])
    rows = {**spec.search.rows, "decay_updates": Row(low=5, high=100)}
    return spec.replace(facts=FACTS, search=spec.search.replace(rows=rows))


def test_the_command_line_offers_every_regime():
    assert set(REGIMES) == set(SURVEY) == set(get_args(SurveyRegime))


@pytest.mark.parametrize("regime", SURVEY)
def test_a_start_comes_after_the_known_recipes_with_its_decay_in_updates(study, regime):
    before, after = study.search.known, with_starts(study, [regime]).search.known
    assert after[:-1] == before
    dials = space.known_dials(after[-1], space=space.build(study.search, n_blocks=22))
    assert after[-1].name == f"survey-{regime}"
    assert dials.decay_updates == decay_updates(regime, n_updates=200)
    assert dials.decay_factor == SURVEY[regime].decay_rate
    assert dials.momentum == SURVEY[regime].momentum


def test_small_batches_of_a_large_study_decay_later(study):
    smaller = study.replace(train=study.train.replace(batch_size=16))
    steps = [
        with_starts(spec, ["smaller-similar"]).search.known[-1].dials["decay_updates"]
        for spec in (study, smaller)
    ]
    assert steps == [5, 10]


def test_without_a_row_for_it_the_decay_is_left_to_the_schedule_and_this_is_said(study):
    plain = study.replace(search=study.search.replace(rows={}))
    known = with_starts(plain, ["larger-similar"]).search.known[-1]
    assert known == starting_recipe("larger-similar")
    assert not {"decay_updates", "decay_factor"} & set(known.dials)
    assert "[train]" in known.reason
    assert "[train]" not in with_starts(study, ["larger-similar"]).search.known[-1].reason


def test_without_facts_there_is_no_decay(study):
    known = with_starts(study.replace(facts=None), ["larger-similar"]).search.known[-1]
    assert known == starting_recipe("larger-similar")


def test_without_weights_a_start_meets_the_space_of_the_study(study):
    rows = {**study.search.rows, "delta": Row(options=("off", "plain"))}
    spec = study.replace(
        facts=FACTS.replace(weights_digest="random"), search=study.search.replace(rows=rows)
    )
    with pytest.raises(SpecError, match="delta needs pre-trained weights"):
        with_starts(spec, ["smaller-similar"])


def test_several_starts_keep_their_order_and_one_given_twice_counts_once(study):
    wanted = ["smaller-similar", "larger-dissimilar", "smaller-similar"]
    names = [known.name for known in with_starts(study, wanted).search.known]
    assert names[-2:] == ["survey-smaller-similar", "survey-larger-dissimilar"]
    assert len(names) == len(study.search.known) + 2


def test_no_start_changes_nothing(study):
    assert with_starts(study, []) == study


def test_an_unknown_regime_is_refused_with_the_list(study):
    with pytest.raises(SpecError, match=r"larger-similar, .*smaller-dissimilar; got 'small'"):
        with_starts(study, ["small"])


def test_a_study_that_has_this_recipe_already_refuses_it(study):
    once = with_starts(study, ["smaller-similar"])
    with pytest.raises(SpecError, match="has survey-smaller-similar already"):
        with_starts(once, ["smaller-similar"])


class TestFiles:
    """A file of one's own trains as `--dataset FOLDER` does, where it does not say otherwise."""

    BARE = 'name = "mine"\n[data]\ndataset = "dtd"\n'

    @pytest.fixture
    def drafted(self, tmp_path):
        def make(more=""):
            file = tmp_path / "mine.toml"
            file.write_text(self.BARE + more)
            return draft(study=file)

        return make

    def test_what_says_nothing_of_the_training_is_trained_as_a_folder(self, drafted, tmp_path):
        of_folder, of_file = draft(str(tmp_path)), drafted("[train]\nepochs = 5\n")
        assert of_file.train.schedule == of_folder.train.schedule == "one_cycle"
        assert of_file.augment == of_folder.augment
        assert of_file.augment.strength == "budget"
        assert of_file.search == of_folder.search
        assert len(of_file.search.known) > 5
        assert of_file.train.epochs == 5

    @pytest.mark.parametrize(
        "more",
        [
            '[train]\nschedule = "step"\n',
            "[train]\nwarmup_epochs = 2\n",
            "[train]\ndecay_rate = 0.5\n",
            "[augment]\nmixup = 0.0\n",
            "[augment]\n",
        ],
    )
    def test_what_says_something_of_it_is_left_as_it_is(self, drafted, more):
        found = drafted(more)
        assert found.train.schedule == "step"
        assert found.augment.strength is None
        (default,) = found.search.known
        assert (default.name, default.dials["lr_high"]) == ("default", 0.0025)
        assert not found.search.rows

    def test_the_binary_space_begins_with_the_binary_recipe(self, drafted, tmp_path):
        found = drafted('[search]\nspace = "binary"\n')
        assert draft(str(tmp_path), settings=["search.space=binary"]).search == (
            found.search.replace(pruning=draft(str(tmp_path)).search.pruning)
        )
        assert found.augment.strength == "budget"
        (default,) = found.search.known
        assert (default.name, default.dials["n_low"]) == ("default", 0)
        assert not found.search.rows

    def test_the_authors_settings_stay_theirs(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text('compat = "authors"\n' + self.BARE)
        found = draft(study=file)
        assert (found.train.schedule, found.augment.strength) == ("step", None)

    def test_the_extended_space_begins_with_the_folders_forms(self, drafted, tmp_path):
        found = drafted('[search]\nspace = "extended"\n').search
        assert found.known == draft(str(tmp_path)).search.known
        built = space.build(found, n_blocks=18)
        for known in found.known:
            assert space.outside(built, space.known_dials(known, space=built)) == []

    def test_adamw_with_recipes_or_rates_of_sgd_is_refused(self, drafted, tmp_path):
        adamw = '[train]\noptimiser = "adamw"\n'
        known = '[[search.known]]\nname = "default"\ndials = { lr_high = 1e-3 }\n'
        rows = "[search.rows]\nlr_high = { low = 1e-4, high = 1e-2 }\n"
        for more in (adamw, adamw + known, adamw + rows):
            with pytest.raises(SpecError, match="needs rates of its own"):
                drafted(more)
        with pytest.raises(SpecError, match="needs rates of its own"):
            draft(str(tmp_path), settings=["train.optimiser=adamw"])
        assert drafted(adamw + rows + known).train.optimiser == "adamw"

    def test_known_recipes_of_its_own_are_the_only_ones(self, drafted):
        known = drafted('[[search.known]]\nname = "default"\ndials = { beta = 0.125 }\n')
        assert [recipe.dials for recipe in known.search.known] == [{"beta": 0.125}]

    @pytest.mark.parametrize("table", ["train", "search"])
    def test_a_table_that_is_none_is_named(self, tmp_path, table):
        file = tmp_path / "mine.toml"
        file.write_text(f"{table} = 3\n" + self.BARE)
        with pytest.raises(SpecError, match=f"^{table}"):
            draft(study=file)

    @pytest.mark.parametrize("setting", ["train.warmup_epochs=2", "train.decay_rate=0.5"])
    def test_what_the_schedule_would_ignore_is_refused(self, tmp_path, setting):
        with pytest.raises(SpecError, match=r"train: .*'one_cycle' has no \w+, got"):
            draft(str(tmp_path), settings=[setting])
        stepped = draft(str(tmp_path), settings=[setting, "train.schedule='step'"])
        assert stepped.train.schedule == "step"

    @pytest.mark.parametrize("setting", ["augment.mixup=0", "augment.mixup=0.2"])
    def test_a_part_set_by_the_command_takes_the_place_of_the_strength(self, tmp_path, setting):
        found = draft(str(tmp_path), settings=[setting]).augment
        assert (found.strength, found.mixup) == (None, float(setting.partition("=")[2]))
        with pytest.raises(SpecError, match="got both"):
            draft(str(tmp_path), settings=["augment.mixup=0.0", "augment.strength=0.5"])

    @pytest.mark.parametrize(
        "setting", ["train.warmup_epochs=5", "train.schedule='step'", "compat='authors'"]
    )
    def test_settings_of_the_command_count_as_the_files(self, tmp_path, setting):
        file = tmp_path / "bare.toml"
        file.write_text(self.BARE)
        found = draft(study=file, settings=[setting])
        assert (found.train.schedule, found.augment.strength) == ("step", None)

    def test_another_schedule_leaves_out_what_it_has_no_use_for(self):
        cycle = draft("textures", settings=["train.schedule='one_cycle'"]).train
        assert (cycle.schedule, cycle.warmup_epochs) == ("one_cycle", 3)
        cosine = draft("textures", settings=["train.schedule='cosine'"]).train
        assert cosine == draft("textures").train
