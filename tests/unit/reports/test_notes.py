"""The notes of trials in the dashboard say what a newcomer would ask."""

from dataclasses import replace

from nbtl_search.reports.dashboard.pages import trial_note


def test_a_paused_trial_a_repeat_and_an_audited_one_say_what_they_are(make_trial):
    trial = make_trial(3, state="paused", value=60.0, n_epochs=3)
    assert "3 of 8 epochs, paused" in trial_note(trial, n_epochs=8)
    assert "goes on if it is among the best" in trial_note(trial, n_epochs=8)
    repeat = replace(make_trial(9, value=70.0), repeat_of=3)
    assert "the recipe of trial 3 with another seed" in trial_note(repeat, n_epochs=8)
    audited = replace(make_trial(4, value=70.0), audited=True)
    assert "drawn by lot to run to its end" in trial_note(audited, n_epochs=8)
    plain = trial_note(make_trial(5, value=70.0), n_epochs=8)
    assert "seed" not in plain
    assert "lot" not in plain
