import optuna
import pytest
from optuna_dashboard import get_note, save_note
from sqlalchemy import text

from nbtl_search import space
from nbtl_search.advice import advise
from nbtl_search.errors import SchemaError
from nbtl_search.ledger import ledger, records, schema
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.spec import Advised, Budget, Diagnosis, KnownRecipe, Measured, Prior
from nbtl_search.study import diagnoses, store, warm_start
from tests.integration.older_tables import as_version

from .test_finals import run_all


@pytest.fixture
def diagnosis():
    """A diagnosis of what the study `cats` has: its weights suit its images."""
    return Diagnosis(
        dataset="textures",
        model="inception_v4",
        image_px=299,
        n_images=3000,
        n_val=1200,
        n_features=1536,
        n_classes=3,
        data_digest="d" * 16,
        weights_digest="random",
        measures=(
            Measured(name="fixed_accuracy", value=80.0, null=33.3),
            Measured(name="random_accuracy", value=40.0, settings={"epochs": 4}),
            Measured(name="emd", reason="needs source | prototypes <b>"),
        ),
    )


class TestRecord:
    def test_the_latest_of_these_images_and_weights_is_found(self, db, spec, diagnosis):
        assert diagnoses.latest(db, spec) is None
        diagnoses.record(db, diagnosis)
        newer = diagnosis.replace(seconds=3.0)
        diagnoses.record(db, newer)
        assert diagnoses.latest(db, spec) == newer
        with db.engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM nbtl_diagnosis")).scalar() == 2

    @pytest.mark.parametrize(
        "change",
        [
            {"data_digest": "e" * 16},
            {"weights_digest": "f" * 16},
            {"model": "mobilenetv2_100"},
            {"image_px": 112},
            {"layer": "features.9"},
            {"normalisation": "dataset"},
        ],
    )
    def test_of_other_images_weights_or_features_it_is_not(self, db, spec, diagnosis, change):
        diagnoses.record(db, diagnosis.replace(**change))
        assert diagnoses.latest(db, spec) is None

    def test_a_later_one_without_accuracies_does_not_take_its_place(self, db, spec, diagnosis):
        diagnoses.record(db, diagnosis)
        lesser = diagnosis.replace(measures=(Measured(name="fixed_accuracy", value=80.0),))
        diagnoses.record(db, lesser)
        assert diagnoses.latest(db, spec) == diagnosis
        diagnoses.record(db, diagnosis.replace(seconds=9.0))
        assert diagnoses.latest(db, spec) == diagnosis.replace(seconds=9.0)

    def test_a_note_whose_closing_line_was_removed_loses_nothing(self, db, spec, diagnosis):
        study = store.create(db, spec)
        diagnoses.record(db, diagnosis)
        cut = get_note(study.optuna).replace("*(end of the diagnosis)*", "my own words")
        save_note(study.optuna, cut)
        for _ in range(2):
            diagnoses.record(db, diagnosis)
            assert "my own words" in get_note(store.open_study(db, "cats").optuna)

    def test_the_notes_of_its_studies_show_it_and_keep_the_rest(self, db, spec, diagnosis):
        study = store.create(db, spec)
        other = store.create(db, spec.replace(name="dogs", model={"name": "resnet18"}))
        written = get_note(study.optuna)
        diagnoses.record(db, diagnosis)
        note = get_note(store.open_study(db, "cats").optuna)
        assert note.startswith(written)
        assert "| accuracy, fixed features (%) | 80 | 33.3 |" in note
        assert "needs source \\| prototypes &lt;b&gt;" in note
        assert get_note(store.open_study(db, "dogs").optuna) == get_note(other.optuna)

    def test_a_newer_one_takes_its_place_between_what_people_wrote(self, db, spec, diagnosis):
        study = store.create(db, spec)
        diagnoses.record(db, diagnosis)
        save_note(study.optuna, "mine\n\n" + get_note(study.optuna) + "\n\nand mine")
        accuracies = {"fixed_accuracy": 81.5, "random_accuracy": 40.0}
        measures = tuple(Measured(name=name, value=v) for name, v in accuracies.items())
        diagnoses.record(db, diagnosis.replace(measures=measures))
        note = get_note(store.open_study(db, "cats").optuna)
        assert note.startswith("mine\n\n")
        assert note.endswith("\n\nand mine")
        assert note.count("How well the weights fit") == 1
        assert "81.5" in note
        assert "33.3" not in note


class TestAdvisedStudies:
    def test_advice_is_tried_after_the_known_and_counts_as_start_up(self, db, spec, diagnosis):
        built = space.build(spec.search, n_blocks=22)
        advice = advise(diagnosis, space=built, known=spec.search.known, n_trials=8)
        assert advice.regime == "suited"
        study = store.create(db, spec.replace(advice=advice))
        trials = study.optuna.get_trials()
        names = [trial.user_attrs.get("nbtl:name", "") for trial in trials]
        advised = [recipe.name for recipe in advice.recipes]
        assert 1 <= len(advised) <= 2
        assert names == ["default", "paper", *advised, *[""] * (4 - len(advised))]
        fixed = [trial.system_attrs["fixed_params"] for trial in trials[2 + len(advised) :]]
        n = 4 - len(advised)
        assert fixed == space.design(built, n=n, seed=spec.search.seed, prior=advice.prior)
        assert fixed != space.design(built, n=n, seed=spec.search.seed)
        assert store.open_study(db, "cats").spec.advice == advice
        assert "the weights look suited" in get_note(study.optuna)

    def test_advice_does_not_make_it_another_study(self, db, spec):
        recipe = KnownRecipe(name="tip", dials={"reinit_layers": 2})
        advised = spec.replace(
            advice=Advised(recipes=(recipe,), prior={"lr_high": Prior(low=1e-3, high=1e-2)})
        )
        assert advised.fingerprint() == spec.fingerprint()
        made = store.create(db, advised)
        again = store.create(db, spec)
        assert again.spec.advice == made.spec.advice
        assert len(again.optuna.get_trials()) == 2 + 1 + 3

    def test_an_advised_study_ends_with_exactly_its_budget(self, db, spec, diagnosis):
        built = space.build(spec.search, n_blocks=22)
        advice = advise(diagnosis, space=built, known=spec.search.known, n_trials=8)
        study = store.create(db, spec.replace(advice=advice))
        recipes = run_all(study, lambda _recipe: 50.0)
        assert len(recipes) == 8
        tried = space.known_dials(advice.recipes[0], space=built)
        assert recipes[2].dials == tried


class TestMemory:
    def test_finished_studies_are_remembered_best_first(self, db, spec, diagnosis):
        diagnoses.record(db, diagnosis)
        study = store.create(db, spec)
        values = iter([50.0, 61.0, 40.0, 70.0, 65.0, 30.0, 20.0, 10.0])
        recipes = run_all(study, lambda _recipe: next(values))
        (found,) = warm_start.earlier_studies(db, spec.replace(name="new"))
        assert (found.study, found.diagnosis) == ("cats", diagnosis)
        assert [r.trial for r in found.recipes] == [3, 4, 1]
        ours = recommend(records.trials(db.engine, study.id), n_images=study.facts.n_val)
        usual = ours.value_of(ours.default).mean
        assert [r.top1 for r in found.recipes] == [value.mean for _, value in ours.ranked[:3]]
        assert [r.gain for r in found.recipes] == [r.top1 - usual for r in found.recipes]
        assert 69 < found.recipes[0].top1 < 70, "shrunken"
        assert dict(found.recipes[0].dials) == recipes[3].dials.model_dump()
        advised = advise(
            diagnosis.replace(n_images=2000),
            space=space.build(spec.search, n_blocks=22),
            known=spec.search.known,
            n_trials=12,
            earlier=[found],
        )
        names = [recipe.name for recipe in advised.recipes]
        assert [name for name in names if name.startswith("warm-start-")] == [
            "warm-start-cats-3",
            "warm-start-cats-4",
        ]

    def test_running_empty_and_other_networks_studies_are_not(self, db, spec):
        store.create(db, spec)
        other = store.create(
            db, spec.replace(name="dogs", model={"name": "resnet18"}, budget=Budget(n_trials=1))
        )
        run_all(other, lambda _recipe: 50.0)
        failed = store.create(db, spec.replace(name="owls"))
        ledger.Ledger(db.engine, failed.id).want("stop")
        assert warm_start.earlier_studies(db, spec.replace(name="new")) == []
        assert [
            found.study for found in warm_start.earlier_studies(db, other.spec.replace(name="new"))
        ] == ["dogs"]

    def test_a_study_does_not_remember_itself(self, db, spec):
        study = store.create(db, spec.replace(budget=Budget(n_trials=1)))
        run_all(study, lambda _recipe: 50.0)
        assert warm_start.earlier_studies(db, spec) == []


def test_a_database_without_the_table_is_brought_up_to_date(db, spec, diagnosis):
    store.create(db, spec)
    as_version(db.engine, 1)
    with pytest.raises(SchemaError, match=rf"version 1.*version {schema.VERSION}.*db upgrade"):
        schema.check(db.engine)
    assert schema.create_or_upgrade(db.engine) == 1
    schema.check(db.engine)
    diagnoses.record(db, diagnosis)
    assert diagnoses.latest(db, spec) == diagnosis
    assert optuna.get_all_study_names(db.optuna) == ["cats"]
