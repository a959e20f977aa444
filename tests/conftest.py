"""What all tests share: needs of markers, `--no-skips`, and run-time checks of tensor shapes."""

import functools
import os
import shutil
from collections.abc import Callable, Generator
from typing import Any

import hypothesis
import pytest
from jaxtyping import install_import_hook
from xdist.scheduler import LoadFileScheduling

# One thread per process: results do not depend on the machine, and tests leave room for others.
# Set before anything imports torch or numpy; processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

CHECKED_SHAPES = (
    "data", "diagnosis", "measures", "network", "source", "training", "transfer",
)  # fmt: skip

# Shapes are types: inside these packages every annotation is checked on every call.
install_import_hook(
    [f"nbtl_search.{part}" for part in CHECKED_SHAPES],
    "beartype.beartype",
)


def _lacks_data() -> str | None:
    folder = os.environ.get("NBTL_REAL_DATA")
    if folder is None:
        return "NBTL_REAL_DATA must name a folder of real photographs, it is unset"
    if not os.path.isdir(folder):  # noqa: PTH112
        return f"NBTL_REAL_DATA must name a folder, got {folder!r}"
    return None


@functools.cache
def _lacks_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch.cuda.is_available() must be true"


@functools.cache
def _lacks_browser() -> str | None:
    return _lacks_programs("chromium", "chromedriver", packages="chromium and chromium-driver")


def _lacks_programs(*names: str, packages: str) -> str | None:
    missing = [name for name in names if shutil.which(name) is None]
    return f"{' and '.join(missing)} must be on PATH (Debian: {packages})" if missing else None


def _lacks_slurm() -> str | None:
    if os.geteuid() != 0:
        return "a Slurm is set up by root only"
    return _lacks_programs(
        "slurmctld", "slurmd", "sbatch", "munged",
        packages="slurmctld, slurmd, slurm-client and munge",
    )  # fmt: skip


NEEDS: dict[str, Callable[[], str | None]] = {
    "browser": _lacks_browser,
    "data": _lacks_data,
    "gpu": _lacks_gpu,
    "nginx": lambda: _lacks_programs("nginx", packages="nginx"),
    "skew": lambda: _lacks_programs("faketime", packages="faketime"),
    "slurm": _lacks_slurm,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        default="",
        metavar="MARKERS",
        help="comma-separated markers whose tests fail where they would be skipped",
    )


def _no_skips(config: pytest.Config) -> set[str]:
    return {name.strip() for name in config.getoption("--no-skips").split(",") if name.strip()}


def pytest_configure(config: pytest.Config) -> None:
    known = {line.split(":")[0] for line in config.getini("markers")}
    unknown = _no_skips(config) - known
    if unknown:
        message = f"--no-skips takes markers, got {sorted(unknown)}"
        raise pytest.UsageError(message)


# Those that take longest come first, so that at the end only short ones are left to share out.
ORDER = (
    "acceptance/test_slurm", "acceptance/test_kills", "acceptance/test_finalize",
    "acceptance/test_demo", "chaos", "acceptance", "unit/training", "unit/source", "unit/exports",
    "unit/diagnosis", "unit/demo", "integration", "unit",
)  # fmt: skip
# Files whose tests share nothing that is expensive to make: each test goes where there is room.
# Of others all tests go to one process, with the studies, servers and runs that they share.
SHARED_OUT = (
    "acceptance/test_slurm", "acceptance/test_kills", "acceptance/test_secrets", "chaos/",
    "unit/training/test_method_contract", "acceptance/test_lifecycle",
)  # fmt: skip


def _place(item: pytest.Item) -> str:
    return os.path.relpath(item.path, os.path.dirname(__file__))  # noqa: PTH120


class Files(LoadFileScheduling):  # type: ignore[misc]
    """Hands whole files to the processes that test, but the tests of `SHARED_OUT` one by one.

    xdist's own groups (`--dist loadgroup`) have no effect with pytest 9.2: they change a private
    copy of a test's id.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return nodeid if file.removeprefix("tests/").startswith(SHARED_OUT) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return Files(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first."""

    def rank(item: pytest.Item) -> int:
        first = (i for i, start in enumerate(ORDER) if _place(item).startswith(start))
        return next(first, len(ORDER))

    items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, lacks in NEEDS.items():
        reason = lacks() if item.get_closest_marker(marker) else None
        if reason:
            pytest.skip(f"{marker}: {reason}")


def _forbid_skip(report: Any) -> None:
    """Turn a skipped report into a failed one that says why."""
    _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, "skipped")
    report.outcome = "failed"
    report.longrepr = f"--no-skips forbids this skip: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marked = any(item.get_closest_marker(name) for name in _no_skips(item.config))
    if marked and report.skipped and not hasattr(report, "wasxfail"):
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Forbid a whole module's skip too: which markers its tests carry cannot be known then."""
    report = yield
    if report.skipped and _no_skips(collector.config):
        _forbid_skip(report)
    return report
