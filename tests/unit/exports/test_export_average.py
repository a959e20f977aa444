"""Exports of an average of weights: which runs it has, and what config.json and card say of it."""

import json
from pathlib import Path

import pytest
import timm

from nbtl_search.spec import Recipe
from nbtl_search.spec.verdict import Contender
from nbtl_search.workspace import models
from tests.exportable import SEEDS, make_run, make_verdict

AVERAGED = (7, 9)
RATES = (0.02, 0.04)


@pytest.fixture
def verdict(tmp_path):
    """The winner is the average of trials 7 and 9, whose first trial is an entry as well."""
    alone = make_verdict(tmp_path / "finals")
    runs = []
    for run in alone.runs:
        if run.candidate == 7:
            folder = tmp_path / "averages" / str(run.seed)
            digest = make_run(folder, seed=1000 + run.seed)
            about = json.loads((folder / "about.json").read_text("utf-8"))
            recipe = Recipe.parse(about["recipe"])
            recipes = [
                recipe.replace(dials=recipe.dials.replace(lr_high=rate)).plain() for rate in RATES
            ]
            changed = about | {"recipe": recipes[0], "averaged": recipes}
            (folder / "about.json").write_text(json.dumps(changed), "utf-8")
            weights = run.weights.replace(folder=str(folder), digest=digest)
            runs.append(run.replace(number=run.number + 4, averaged=AVERAGED, weights=weights))
    default, member = alone.entries
    average = member.replace(averaged=AVERAGED, name="average of trial 7, trial 9")
    contender = Contender(
        **average.model_dump(include={"trial", "averaged", "name"}),
        dials=average.dials,
        search_top1=None,
        confirmed=average.single,
        value=None,
        gain=None,
        is_tied_with_winner=False,
        is_winner=True,
    )
    others = [each.replace(is_winner=False) for each in alone.contenders]
    return alone.replace(
        entries=(default, member, average),
        runs=(*alone.runs, *runs),
        contenders=(*others, contender),
    )


def test_its_own_weights_are_exported_and_timm_loads_them(verdict, tmp_path):
    models.write(verdict, tmp_path / "out", study="pets")
    config = json.loads((tmp_path / "out/config.json").read_text("utf-8"))["nbtl_search"]
    digests = {run.seed: run.weights.digest for run in verdict.runs if run.averaged}
    assert config["weights_digest"] == digests[min(SEEDS)]
    assert config["results"]["chosen"]["name"] == "average of trial 7, trial 9"
    assert config["results"]["is_winner"]
    assert [Recipe.parse(each).dials.lr_high for each in config["averaged"]] == list(RATES)
    assert not any("secret" in json.dumps(each) for each in config["averaged"])
    timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)


def test_all_seeds_are_its_own(verdict, tmp_path):
    done = models.write(verdict, tmp_path / "out", study="pets", seed_ensemble=True)
    for member in done.members:
        path = Path(tmp_path, "out", member, "config.json")
        assert "averaged" in json.loads(path.read_text("utf-8"))["nbtl_search"]


def test_the_card_describes_every_recipe_and_counts_what_was_trained(verdict, tmp_path):
    models.write(verdict, tmp_path / "out", study="pets")
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert "It is the winner, an average of weights, of the study pets" in card
    assert "The weights are the average of 2 networks" in card
    assert card.count("Learning rates: ") == 2
    for rate in RATES:
        assert f"the others {rate:g}, the classifier {rate:g}." in card
    assert "2 candidates in all" in card
    assert "Beside them stood 1 average of their weights" in card
    assert "under `nbtl_search.averaged`" in card


def test_the_default_on_request_is_no_average(verdict, tmp_path):
    models.write(verdict, tmp_path / "out", study="pets", which="default")
    config = json.loads((tmp_path / "out/config.json").read_text("utf-8"))["nbtl_search"]
    assert "averaged" not in config
    assert not config["results"]["is_winner"]
