"""The space of every method: no point of it is impossible, and each method can be off."""

import hypothesis.strategies as st
import optuna
import pytest
from hypothesis import given, settings

from nbtl_search import space
from nbtl_search.errors import SpecError
from nbtl_search.space.regimes import SURVEY, effective_rate, starting_recipe
from nbtl_search.spec import Dials, Facts, KnownRecipe, Row, SearchSettings

BLOCKS = st.integers(1, 30)
USUAL = dict(Dials())
SWITCHES = {
    "source_head": "replace",
    "frozen_layers": 0,
    "delta": "off",
    "distill": 0.0,
    "bss": 0.0,
    "stochnorm_p": 1.0,
    "decay_updates": 0,
}


class Drawn:
    """A trial whose suggestions hypothesis draws."""

    def __init__(self, data):
        self.data = data
        self.params = {}

    def suggest_float(self, name, low, high, *, log=False):  # noqa: ARG002
        self.params[name] = self.data.draw(st.floats(low, high))
        return self.params[name]

    def suggest_int(self, name, low, high):
        self.params[name] = self.data.draw(st.integers(low, high))
        return self.params[name]

    def suggest_categorical(self, name, choices):
        self.params[name] = self.data.draw(st.sampled_from(choices))
        return self.params[name]


def extended(*, n_blocks=22, pretrained=True, **rows):
    search = SearchSettings(space="extended", rows=rows)
    return space.build(search, n_blocks=n_blocks, pretrained=pretrained)


def known(built, **dials):
    return space.known_dials(KnownRecipe(name="mine", dials=dials), space=built)


def lawful(built, dials, params):
    assert space.impossible(dials, n_blocks=built.n_blocks, pretrained=built.pretrained) == []
    assert space.outside(built, dials) == []
    found = space.params_of(built, dials)
    assert list(found) == list(params)
    again = space.dials_of(built, found)
    assert again == dials.replace(lr_high=again.lr_high)
    assert again.lr_high == pytest.approx(dials.lr_high, rel=1e-12)
    for row in built.rows:
        if row.name not in params and row.name in USUAL:
            assert getattr(dials, row.name) == USUAL[row.name]


@settings(max_examples=60)
@given(data=st.data(), n_blocks=BLOCKS, pretrained=st.booleans())
def test_no_impossible_point_is_suggested(data, n_blocks, pretrained):
    built = extended(n_blocks=n_blocks, pretrained=pretrained)
    trial = Drawn(data)
    dials = space.suggest(built, trial)
    lawful(built, dials, trial.params)
    assert (dials.lr_high / (1 - dials.momentum)) == pytest.approx(trial.params["effective_lr"])


@settings(max_examples=30)
@given(n_blocks=BLOCKS, seed=st.integers(0, 2**31))
def test_no_impossible_point_is_in_a_design(n_blocks, seed):
    built = extended(n_blocks=n_blocks)
    for point in space.design(built, n=8, seed=seed):
        lawful(built, space.dials_of(built, point), point)


ROWS = st.fixed_dictionaries(
    {},
    optional={
        "source_head": st.sampled_from([Row(fixed="replace"), Row(options=("keep", "replace"))]),
        "reinit_layers": st.sampled_from([Row(fixed=2), Row(low=2), Row(options=(1, 3))]),
        "frozen_layers": st.sampled_from([Row(fixed="all"), Row(options=(0, "all")), Row(low=1)]),
        "momentum": st.sampled_from([Row(fixed=0.0), Row(low=0.5, high=0.9)]),
        "effective_lr": st.sampled_from([Row(fixed=0.1), Row(low=0.01, high=0.1)]),
        "n_l2sp": st.sampled_from([Row(options=(0, "14/22", "all")), Row(fixed="all")]),
        "dtnh": st.sampled_from([Row(options=("conflict",)), Row(fixed="always")]),
        "bss": st.sampled_from([Row(low=1e-4, high=1e-2), Row(options=(0, 0.1))]),
    },
)


@settings(max_examples=60)
@given(data=st.data(), n_blocks=BLOCKS, rows=ROWS, name=st.sampled_from(["extended", "paper"]))
def test_nor_do_changed_rows_lead_to_one(data, n_blocks, rows, name):
    try:
        built = space.build(SearchSettings(space=name, rows=rows), n_blocks=n_blocks)
    except SpecError as error:
        assert "search.rows" in str(error)  # noqa: PT017
        return
    trial = Drawn(data)
    dials = space.suggest(built, trial)
    assert space.impossible(dials, n_blocks=n_blocks) == []
    assert space.outside(built, dials) == []
    assert list(space.params_of(built, dials)) == list(trial.params)
    again = space.dials_of(built, space.params_of(built, dials))
    assert again.lr_high == pytest.approx(dials.lr_high)
    assert again == dials.replace(lr_high=again.lr_high)


@pytest.mark.parametrize("name", ["extended", "paper"])
@pytest.mark.parametrize("n_blocks", [1, 2, 22])
def test_held_counts_that_new_layers_cut_short_leave_only_possible_points(name, n_blocks):
    rows = {
        "source_head": Row(fixed="replace"),
        "frozen_layers": Row(fixed="all"),
        "n_l2sp": Row(fixed="all"),
        "dtnh": Row(options=("conflict",)),
        "delta": Row(options=("off", "plain")),
    }
    built = space.build(SearchSettings(space=name, rows=rows), n_blocks=n_blocks)
    dials = [space.dials_of(built, point) for point in space.design(built, n=64, seed=1)]
    assert {one.reinit_layers for one in dials} == set(range(1, min(3, n_blocks + 1) + 1))
    for one in dials:
        assert space.impossible(one, n_blocks=n_blocks) == []
        assert space.outside(built, one) == []


def test_each_method_is_off_in_three_of_four_start_up_points():
    built = extended()
    dials = [space.dials_of(built, point) for point in space.design(built, n=256, seed=1)]
    for name, off in SWITCHES.items():
        share = sum(getattr(one, name) == off for one in dials) / len(dials)
        assert share == pytest.approx(0.75, abs=0.01), name
    n_on = [sum(getattr(one, name) != off for name, off in SWITCHES.items()) for one in dials]
    assert n_on.count(0) / len(dials) == pytest.approx(0.75**7, abs=0.06)
    assert {one.dtnh for one in dials} == {"off", "conflict", "always"}
    assert {one.frozen_layers for one in dials} >= set(range(22))


def test_frozen_all_and_l2sp_on_all_are_reached_whatever_is_new():
    built = extended()
    point = {**space.design(built, n=1, seed=0)[0], "source_head": "replace", "reinit_layers": 3}
    probing = {**point, "frozen_layers": 22, "n_l2sp": 22, "n_low": 0, "momentum": 0.5}
    probing |= {"distill": 4.0, "distill_temperature": 2.0, "dtnh": "off", "delta": "off"}
    dials = space.dials_of(built, probing)
    assert (dials.frozen_layers, dials.n_l2sp, dials.alpha) == (20, 20, 0.0)
    assert space.params_of(built, dials)["frozen_layers"] == 20
    ends = extended(frozen_layers=Row(options=(0, "all")), n_l2sp=Row(options=(0, "all")))
    assert space.outside(ends, dials) == []
    assert space.params_of(ends, dials)["frozen_layers"] == 22


@given(data=st.data())
def test_the_papers_points_lie_inside(data):
    paper = space.build(SearchSettings(), n_blocks=22)
    assert space.outside(extended(), space.suggest(paper, Drawn(data))) == []


def test_the_starts_of_the_survey_lie_inside():
    built = extended()
    for regime in SURVEY:
        dials = space.known_dials(starting_recipe(regime), space=built)
        assert [line for line in space.outside(built, dials) if "alpha" not in line] == []


def test_a_point_goes_through_optuna_unchanged():
    built = extended()
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    for point in space.design(built, n=4, seed=5):
        study.enqueue_trial(point)
        trial = study.ask()
        assert space.suggest(built, trial) == space.dials_of(built, point)
        assert trial.params == point


class TestEffectiveRate:
    def test_bounds_of_the_rate_itself_take_its_place(self):
        built = extended(lr_high=Row(low=1e-3, high=1e-2))
        assert built.row("effective_lr") is None
        domain = built.row("lr_high").domain
        assert domain == space.Float(low=1e-3, high=1e-2, log=True)
        assert extended(lr_high=Row(fixed=0.01)).fixed["lr_high"] == 0.01

    def test_it_can_be_fixed_and_searched_in_the_paper_space(self):
        rows = {"effective_lr": Row(fixed=0.1), "momentum": Row(low=0.0, high=0.9)}
        built = space.build(SearchSettings(rows=rows), n_blocks=22)
        assert built.row("lr_high") is None
        for point in space.design(built, n=4, seed=0):
            dials = space.dials_of(built, point)
            assert effective_rate(dials.lr_high, dials.momentum) == pytest.approx(0.1)
            assert space.outside(built, dials) == []

    def test_both_rates_at_once_are_refused(self):
        with pytest.raises(SpecError, match="leave one out"):
            extended(lr_high=Row(fixed=0.01), effective_lr=Row(fixed=0.1))

    @given(effective=st.sampled_from([5e-3, 0.5]), momentum=st.floats(0, 0.95))
    def test_rounding_does_not_lead_outside_its_bounds(self, effective, momentum):
        built = extended()
        dials = known(built, effective_lr=effective, momentum=momentum)
        assert not [line for line in space.outside(built, dials) if "effective" in line]
        assert "effective_lr" in space.params_of(built, dials)


class TestByHand:
    @pytest.mark.parametrize(
        ("dials", "says"),
        [
            ({"frozen_layers": 22, "reinit_layers": 2}, "frozen_layers <= .* = 21.*got 22"),
            ({"frozen_layers": 23}, "= 22.*got 23"),
            ({"source_head": "keep", "reinit_layers": 2}, "reinit_layers = 1 where source_head"),
            ({"dtnh": "always"}, "dtnh = 'always' must have a pull"),
            ({"dtnh": "always", "n_l2sp": 5}, "alpha > 0"),
            ({"n_l2sp": 22, "reinit_layers": 3}, "n_l2sp <= .* = 20.*got 22"),
            ({"n_l2sp": "22/22", "reinit_layers": 3}, "n_l2sp <= "),
            ({"frozen_layers": "some"}, "'all' or a fraction"),
            ({"lr_high": 0.1, "effective_lr": 1.0}, "leave one out"),
        ],
    )
    def test_an_impossible_recipe_is_refused_with_the_reason(self, dials, says):
        with pytest.raises(SpecError, match=rf"known recipe 'mine': .*{says}"):
            known(extended(), **dials)

    def test_all_is_all_that_is_pretrained_and_fractions_count_blocks(self):
        dials = known(extended(), n_l2sp="all", frozen_layers="all", reinit_layers=3)
        assert (dials.n_l2sp, dials.frozen_layers) == (20, 20)
        assert known(extended(), frozen_layers="11/22").frozen_layers == 11
        assert known(extended(), source_head="keep", n_l2sp="all").n_l2sp == 23
        assert known(extended(), source_head="keep", n_l2sp="22/22").n_l2sp == 22

    def test_the_paper_space_still_cuts_l2sp_without_a_word(self):
        paper = space.build(SearchSettings(), n_blocks=22)
        assert known(paper, n_l2sp=22, reinit_layers=3).n_l2sp == 22
        assert space.impossible(Dials(n_l2sp=22, reinit_layers=3), n_blocks=22) == []

    @pytest.mark.parametrize(
        ("dials", "says"),
        [
            ({"frozen_layers": 3}, "frozen_layers = 0 without"),
            ({"delta": "plain"}, "delta = 'off' without"),
            ({"distill": 1.0}, "distill = 0.0 without"),
            ({"source_head": "keep"}, "source_head = 'replace' without"),
        ],
    )
    def test_without_weights_nothing_is_kept(self, dials, says):
        with pytest.raises(SpecError, match=says):
            known(extended(pretrained=False), **dials)


class TestRows:
    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            (
                {"source_head": Row(fixed="keep"), "reinit_layers": Row(fixed=2)},
                "reinit_layers = 1",
            ),
            (
                {
                    "source_head": Row(fixed="replace"),
                    "frozen_layers": Row(fixed=22),
                    "reinit_layers": Row(fixed=2),
                },
                "= 21",
            ),
            ({"bss": Row(options=(-1,))}, "bss"),
            ({"delta": Row(low=0, high=1)}, "takes options or fixed"),
            ({"bss": Row(low=0.1)}, "both bounds"),
            ({"frozen_layers": Row(options=(0, "x"))}, "'all' or a fraction"),
            (
                {
                    "dtnh": Row(fixed="always"),
                    "n_l2sp": Row(fixed=0),
                    "delta": Row(fixed="off"),
                    "distill": Row(options=(0.0,)),
                },
                "dtnh must have a pull",
            ),
        ],
    )
    def test_what_leaves_nothing_possible_is_refused(self, rows, says):
        with pytest.raises(SpecError, match=says):
            extended(**rows)

    def test_without_weights_no_row_may_need_them(self):
        assert extended(pretrained=False).fixed == {
            name: USUAL[name] for name in ("source_head", "frozen_layers", "delta", "distill")
        }
        with pytest.raises(SpecError, match="delta needs pre-trained weights"):
            extended(pretrained=False, delta=Row(options=("off", "plain")))
        with pytest.raises(SpecError, match="delta = 'off' without"):
            extended(pretrained=False, delta=Row(fixed="plain"))
        facts = Facts(
            n_blocks=3,
            n_classes=2,
            n_train=1,
            n_val=1,
            n_test=0,
            data_digest="d",
            weights_digest="random",
        )
        assert not space.build_for(SearchSettings(space="extended"), facts).pretrained

    def test_the_paper_space_takes_up_new_dials(self):
        rows = {
            "bss": Row(options=(0, 0.001)),
            "frozen_layers": Row(low=0, high="all"),
            "dtnh": Row(),
            "source_head": Row(),
            "decay_factor": Row(),
        }
        built = space.build(SearchSettings(rows=rows), n_blocks=11)
        names = [row.name for row in built.rows]
        assert names[:3] == ["source_head", "reinit_layers", "frozen_layers"]
        found = {row.name: row for row in built.rows}
        assert found["bss"].domain == space.Choice(options=(0, 0.001), usual=0.75)
        assert found["frozen_layers"].domain == space.Int(low=0, high=11, usual=0.75)
        assert found["dtnh"].domain == space.Choice(
            options=("off", "conflict", "always"), usual=0.5
        )
        assert str(found["dtnh"].when) == "n_l2sp > frozen_layers and alpha > 0"
        assert str(found["alpha"].when) == "n_l2sp > frozen_layers"
        assert str(found["reinit_layers"].when) == "source_head is replace"
        for point in space.design(built, n=8, seed=0):
            dials = space.dials_of(built, point)
            assert space.impossible(dials, n_blocks=11) == []
            assert "decay_factor" not in point

    @pytest.mark.parametrize("change", [{}, {"high": "all"}, {"options": (0, "all")}])
    @pytest.mark.parametrize(("head", "n"), [("keep", 23), ("replace", 22)])
    def test_the_top_of_l2sp_is_all_there_are(self, change, head, n):
        built = extended(n_l2sp=Row(**change))
        point = space.design(built, n=1, seed=0)[0] | {"reinit_layers": 1, "frozen_layers": 0}
        top = built.row("n_l2sp").domain.at(0.999)
        usual = {"alpha": 0.01, "delta": "off", "distill": 0.0, "dtnh": "off", "n_low": 0}
        dials = space.dials_of(built, point | usual | {"source_head": head, "n_l2sp": top})
        assert dials.n_l2sp == n
        assert space.outside(built, dials) == []
        assert "n_l2sp" in space.params_of(built, dials)

    def test_all_l2sp_blocks_held_are_all_there_are(self):
        built = extended(n_l2sp=Row(fixed="all"), reinit_layers=Row(fixed=1))
        found = {
            (one.source_head, one.n_l2sp)
            for one in (space.dials_of(built, p) for p in space.design(built, n=16, seed=0))
        }
        assert found == {("keep", 23), ("replace", 22)}

    def test_at_least_one_block_learns_unless_all_are_frozen_by_hand(self):
        assert extended().row("frozen_layers").domain.high == 21
        assert known(extended(), frozen_layers="all").frozen_layers == 22
        by_row = extended(frozen_layers=Row(high="all")).row("frozen_layers")
        assert by_row.domain.high == 22

    def test_decay_leaves_some_rate_at_usual_factors(self):
        rows = {row.name: row.domain for row in extended().rows}
        assert rows["decay_updates"].options == (0, 60, 240, 960)
        assert rows["decay_factor"] == space.Float(low=0.5, high=0.97)


class TestStoredStudies:
    """Studies with rows of their own go on with the distributions they began with."""

    @pytest.mark.parametrize(
        ("name", "row", "change", "domain"),
        [
            ("paper", "momentum", {"low": 0.5}, space.Float(low=0.5, high=1.0)),
            ("binary", "momentum", {"high": 0.9}, space.Float(low=0.0, high=0.9)),
            ("binary", "reinit_layers", {"low": 1}, space.Int(low=1, high=22)),
            ("binary", "n_low", {"low": 2}, space.Int(low=2, high=22)),
            ("binary", "n_low", {"high": 8}, space.Int(low=0, high=8)),
            ("binary", "lr_head_ratio", {"low": 0.1}, space.Float(low=0.1, high=1.0)),
            ("paper", "lr_head_ratio", {"low": 1.0}, space.Float(low=1.0, high=10, log=True)),
            ("paper", "n_low", {"low": 2}, space.Int(low=2, high=9)),
            ("extended", "momentum", {"low": 0.5}, space.Float(low=0.5, high=0.95)),
            ("extended", "reinit_layers", {"low": 2}, space.Int(low=2, high=3)),
        ],
    )
    def test_one_bound_leaves_the_other_where_it_was(self, name, row, change, domain):
        search = SearchSettings(space=name, rows={row: Row(**change)})
        found = space.build(search, n_blocks=11).row(row)
        assert found is not None
        assert found.domain == domain

    @pytest.mark.parametrize(("name", "proposed"), [("binary", True), ("paper", False)])
    def test_binary_proposes_the_low_ratio_also_without_low_blocks(self, name, proposed):
        rows = {"lr_low_ratio": Row(low=0.2), "n_low": Row(fixed=0)}
        built = space.build(SearchSettings(space=name, rows=rows), n_blocks=11)
        (point,) = space.design(built, n=1, seed=0)
        assert ("lr_low_ratio" in point) is proposed
        assert ("lr_low_ratio" in space.params_of(built, space.dials_of(built, point))) is proposed


class TestOutside:
    PAPER = space.build(SearchSettings(), n_blocks=22)

    @pytest.mark.parametrize(
        "dials",
        [
            {"delta": "attention"},
            {"distill": 4.0},
            {"frozen_layers": 2},
            {"momentum": 0.5},
            {"source_head": "keep"},
            {"decay_updates": 60},
        ],
    )
    def test_what_a_space_neither_searches_nor_fixes_is_at_its_default(self, dials):
        ((name, value),) = dials.items()
        found = space.outside(self.PAPER, Dials(beta=1e-3, **dials))
        assert found == [f"{name} = {value} where the space holds {USUAL[name]}"]
        assert space.outside(self.PAPER, Dials(beta=1e-3)) == []

    def test_what_has_no_effect_is_inside(self):
        dials = Dials(beta=1e-3, delta_alpha=0.5, distill_temperature=1.0, decay_factor=0.5)
        assert space.outside(self.PAPER, dials) == []

    def test_a_recipe_by_hand_may_still_lie_there(self):
        dials = known(self.PAPER, delta="attention", momentum=0.5)
        assert (dials.delta, dials.momentum) == ("attention", 0.5)

    def test_conditions_read_as_before_where_nothing_is_frozen(self):
        rows = space.build(SearchSettings(), n_blocks=22).rows
        assert [str(row.when or "") for row in rows] == [
            "",
            "",
            "",
            "",
            "n_low > 0",
            "",
            "n_l2sp > 0",
            "",
        ]


class TestIdle:
    @pytest.mark.parametrize(
        ("dials", "idle"),
        [
            (Dials(), {"n_low", "lr_low_ratio", "n_l2sp", "alpha", "dtnh"}),
            (Dials(n_low=3, n_l2sp=3, alpha=0.1), set()),
            (
                Dials(n_low=3, n_l2sp=3, alpha=0.1, frozen_layers=3, dtnh="always"),
                {"n_low", "lr_low_ratio", "n_l2sp", "alpha", "dtnh"},
            ),
            (
                Dials(n_low=3, n_l2sp=3, alpha=0.1, source_head="keep"),
                {"head_start", "reinit_layers"},
            ),
            (Dials(n_low=3, n_l2sp=3, alpha=0.1, head_start="logistic"), {"reinit_layers"}),
        ],
    )
    def test_what_has_no_effect_is_named(self, dials, idle):
        methods = {"delta_alpha", "distill_temperature", "decay_factor"}
        assert set(space.idle(dials)) == idle | methods
