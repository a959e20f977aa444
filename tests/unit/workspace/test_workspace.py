"""The workspace: its home, its nouns, and the functions that stand for their methods."""

import dataclasses
import inspect

import pytest

import nbtl_search
from nbtl_search import Workspace, api
from nbtl_search.workspace import drafts, machine, models, notifications
from nbtl_search.workspace.diagnoses import Diagnoses
from nbtl_search.workspace.machine import Machine
from nbtl_search.workspace.maintenance import Backups, Leftovers, Logs
from nbtl_search.workspace.models import Models
from nbtl_search.workspace.notifications import Notifications
from nbtl_search.workspace.results import Results
from nbtl_search.workspace.studies import Studies
from nbtl_search.workspace.workers import Workers
from nbtl_search.workspace.workspace import default_home

STANDS_FOR = {
    "ablate": Results.ablate,
    "ablation": Results.ablation,
    "backup": Backups.write,
    "best": Studies.best,
    "best_slots": machine.best_slots,
    "cancel": Studies.cancel,
    "clean": Leftovers.remove,
    "create": Studies.create,
    "dashboard": Studies.dashboard,
    "default_home": default_home,
    "delete": Studies.delete,
    "diagnose": Diagnoses.measure,
    "doctor": Machine.doctor,
    "draft": drafts.draft,
    "export": Models.export,
    "extend": Studies.extend,
    "finalize": Results.finalize,
    "follow": Logs.follow,
    "fork": Studies.fork,
    "launch": Workers.launch,
    "launch_on_slurm": Workers.launch_on_slurm,
    "logs": Logs.last,
    "logs_folder": Workspace.logs_folder,
    "notify": Notifications.send,
    "packed": Machine.packed,
    "predict": models.predict,
    "preflight": Machine.preflight,
    "prepare": Studies.prepare,
    "report": Results.report,
    "reproduce": Results.reproduce,
    "restore": Backups.restore,
    "status": Studies.status,
    "steer": Studies.steer,
    "studies": Studies.all,
    "tell_test": notifications.send_test,
    "train": Models.train,
    "verdict": Results.verdict,
    "work": Workers.work,
}
RENAMED = {"on_told": "on_sent"}  # functions keep the names that programs pass
NOUNS = {
    "backups": Backups,
    "diagnoses": Diagnoses,
    "leftovers": Leftovers,
    "logs": Logs,
    "machine": Machine,
    "models": Models,
    "notifications": Notifications,
    "results": Results,
    "studies": Studies,
    "workers": Workers,
}


def arguments(function):
    """Return each argument but the workspace's own, and its default."""
    found = inspect.signature(function).parameters.values()
    return {
        RENAMED.get(argument.name, argument.name): "a function"
        if inspect.isfunction(argument.default)
        else argument.default
        for argument in found
        if argument.name not in {"self", "home", "storage"}
    }


def test_every_function_has_a_method_that_it_stands_for():
    assert set(STANDS_FOR) == set(api.__all__)
    assert set(nbtl_search.__all__) - {"Recipe", "StudySpec", "Workspace"} <= set(STANDS_FOR)


@pytest.mark.parametrize("name", sorted(set(STANDS_FOR) - {"logs_folder"}))
def test_a_function_has_the_arguments_of_its_method(name):
    assert arguments(getattr(api, name)) == arguments(STANDS_FOR[name])


@pytest.mark.parametrize("name", NOUNS)
def test_a_noun_belongs_to_its_workspace(name, tmp_path):
    workspace = Workspace(tmp_path)
    noun = getattr(workspace, name)
    assert isinstance(noun, NOUNS[name])
    assert vars(noun) == {"workspace": workspace}


def test_a_workspace_is_where_it_is_told_or_at_the_users_own(tmp_path):
    assert Workspace(tmp_path) == Workspace(str(tmp_path))
    assert Workspace().home == default_home()
    assert Workspace().storage is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        Workspace().home = tmp_path  # type: ignore[misc]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cr3t@host/db",
        "postgresql:///db?host=/run&password=s3cr3t",
        "postgresql://ann:s3cr3t/#?@host/db",
        "host=there password=s3cr3t",
    ],
)
def test_no_password_is_shown(tmp_path, url):
    workspace = Workspace(tmp_path, url)
    for text in (repr(workspace), str(workspace), repr(workspace.studies)):
        assert "s3cr3t" not in text
        assert str(tmp_path) in text
