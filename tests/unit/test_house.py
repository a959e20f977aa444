"""The house: sizes, floors, names, documents and package data."""

import ast
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import click
import pytest

import nbtl_search
from nbtl_search import space
from nbtl_search.cli.app import app
from nbtl_search.spec import Dials, StudySpec, Value

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nbtl_search"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "workers" / "README.md"]

# Words that begin a docstring which asks instead of naming.
ASKS = re.compile(r"(What|Who|Where|How|Which|When|Why|Whether|From)\b")
TO_A_TOOL = re.compile(r"#\s*(noqa|fmt|type|pragma|ruff|mypy)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _id(path: object) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else str(path)


def _lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def _functions() -> Iterator[tuple[str, int]]:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, Function):
                yield f"{_id(module)}:{node.name}", 1 + (node.end_lineno or 0) - node.lineno


def _python(code: str) -> list[str]:
    """Run code in a new interpreter and return what it prints, in words."""
    done = _run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def _comments(path: Path) -> Iterator[str]:
    """Give a module's comments, but for those that speak to a tool."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT and not TO_A_TOOL.match(token.string):
                yield token.string


class TestSizes:
    def test_no_module_is_above_500_lines(self) -> None:
        assert [_id(module) for module in MODULES if _lines(module) > 500] == []

    def test_modules_are_subjects_not_fragments(self) -> None:
        """Few enough to know them all, and a typical one that is read at one sitting."""
        sizes = [_lines(module) for module in MODULES if module.name != "__init__.py"]
        assert len(sizes) <= 200
        assert 60 <= statistics.median(sizes) <= 180

    def test_no_function_is_above_60_lines(self) -> None:
        assert [name for name, lines in _functions() if lines > 60] == []

    def test_the_median_function_has_at_most_10_lines(self) -> None:
        assert statistics.median(lines for _, lines in _functions()) <= 10


class TestProse:
    def test_a_module_says_first_what_it_defines(self) -> None:
        """Its docstring begins with the noun, so that the tree's first lines are an index."""
        docstrings = {
            _id(module): ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
            for module in MODULES
        }
        assert [name for name, text in docstrings.items() if not text or ASKS.match(text)] == []

    def test_the_code_says_why(self) -> None:
        """One comment in a hundred lines: a floor, lest they fall to nothing again."""
        n_comments = sum(len(list(_comments(module))) for module in MODULES)
        assert n_comments / sum(_lines(module) for module in MODULES) >= 0.01


class TestFloors:
    def test_import_linter_keeps_every_contract(self) -> None:
        done = _run(Path(sys.executable).with_name("lint-imports"), "--no-cache")
        assert done.returncode == 0, done.stdout + done.stderr

    def test_every_module_outside_the_meeting_place_is_in_a_column(self) -> None:
        contracts = PROJECT["tool"]["importlinter"]["contracts"]
        forbidden = [contract for contract in contracts if contract["type"] == "forbidden"]
        covered = set(chain.from_iterable(contract["source_modules"] for contract in forbidden))
        packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
        modules = packages | {path.stem for path in PACKAGE.glob("*.py")}
        meeting = {"__init__", "__main__", "api", "cli", "demo", "worker", "workspace"}
        assert {f"nbtl_search.{name}" for name in modules - meeting} <= covered

    def test_names_are_domain_nouns(self) -> None:
        empty = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
        assert [_id(module) for module in MODULES if module.stem.strip("_") in empty] == []

    def test_every_import_is_a_declared_dependency(self) -> None:
        tops = {name.partition(".")[0] for name in _imported()}
        foreign = tops - set(sys.stdlib_module_names) - {"nbtl_search"}
        distributions = packages_distributions()
        undeclared = {
            name
            for name in foreign
            if not {_normal(found) for found in distributions.get(name, [])} & set(_dependencies())
        }
        assert undeclared == set()


def test_no_verb_has_the_name_of_a_module() -> None:
    # The module would take the verb's place in the package as soon as anything imported it.
    modules = {path.stem for path in (ROOT / "nbtl_search").iterdir()}
    assert not modules & set(nbtl_search.__all__)


def _verbs() -> list[str]:
    return app.list_commands(click.Context(app))


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def _imported() -> Iterator[str]:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module


class TestStart:
    HEAVY = ("torch", "torchvision", "timm", "optuna", "sqlalchemy", "scipy", "plotly")
    HELP = "import sys; sys.argv = ['', '--help']; from nbtl_search.cli import main; main()"

    def test_importing_the_command_line_is_light(self) -> None:
        loaded = _python("import sys, nbtl_search.cli; print(*sys.modules)")
        assert "click" in loaded
        assert set(self.HEAVY) & set(loaded) == set()

    def test_importing_the_package_is_light(self) -> None:
        loaded = _python("import sys, nbtl_search; print(*sys.modules)")
        assert set(self.HEAVY) & set(loaded) == set()

    def test_help_is_light(self) -> None:
        done = _run(sys.executable, "-X", "importtime", "-c", self.HELP)
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "Usage" in done.stdout
        assert "click" in loaded
        assert set(self.HEAVY) & loaded == set()

    def test_help_takes_less_than_400_ms_of_processor_time(self) -> None:
        """The best of five: other processes of a busy machine cost time here as well."""
        assert min(self._help_s() for _ in range(5)) < 0.4

    def _help_s(self) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _run(sys.executable, "-c", self.HELP)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    @pytest.mark.parametrize("name", ["studies", "workers", "machine", "models"])
    def test_a_verb_loads_what_it_uses_and_when(self, name: str) -> None:
        """Submitit, moreover, sets up the logging of the whole process when it is imported."""
        loaded = _python(f"import sys, nbtl_search.workspace.{name}; print(*sys.modules)")
        lighter = {"submitit", "torch"} if name == "workers" else {"submitit", "torch", "optuna"}
        assert lighter & set(loaded) == set()

    def test_the_supervisor_never_loads_torch(self) -> None:
        loaded = _python("import sys, nbtl_search.worker.supervisor; print(*sys.modules)")
        assert {"torch", "timm"} & set(loaded) == set()

    def test_the_trainer_never_loads_optuna(self) -> None:
        loaded = _python("import sys, nbtl_search.worker.trainer; print(*sys.modules)")
        assert {"optuna", "sqlalchemy", "psycopg2"} & set(loaded) == set()


def _dependencies() -> list[str]:
    optional = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in optional for line in extra)]
    return [_distribution(line) for line in lines]


def _distribution(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found.group()


class TestDocuments:
    def test_every_dependency_has_its_line(self) -> None:
        development = [_distribution(line) for line in PROJECT["dependency-groups"]["dev"]]
        development.remove("nbtl-search")  # for its extras
        text = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
        listed = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
        assert sorted(listed) == sorted(_dependencies() + development)

    def test_every_key_of_a_study_is_explained(self) -> None:
        text = (ROOT / "docs" / "studies.md").read_text("utf-8")
        listed = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
        assert _keys(StudySpec) | set(Dials.model_fields) <= listed | {*TABLES, *ROW}

    def test_the_study_in_the_documentation_parses(self) -> None:
        text = (ROOT / "docs" / "studies.md").read_text("utf-8")
        examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
        assert examples
        for example in examples:
            search = StudySpec.parse(tomllib.loads(example)).search
            space.build(search, n_blocks=22)

    def test_make_has_every_target_the_documents_name(self) -> None:
        makefile = (ROOT / "Makefile").read_text("utf-8")
        targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
        pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
        named = {
            name
            for page in pages
            for name in re.findall(
                r"(?:^|`|&& )make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE
            )
        }
        assert {"demo", "test", "check"} <= named <= targets

    def test_the_command_line_has_every_verb_the_documents_name(self) -> None:
        verb = re.compile(r"(?:^\s*|[`:] ?)nbtl-search ([a-z]+)\b", re.MULTILINE)
        named = {name for page in PAGES for name in verb.findall(page.read_text("utf-8"))}
        assert {"create", "launch", "dashboard", "status"} <= named <= set(_verbs())

    def test_the_readme_lists_every_verb(self) -> None:
        _, _, rest = (ROOT / "README.md").read_text("utf-8").partition("\n## Commands\n")
        section, _, _ = rest.partition("\n## ")
        listed = re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE)
        assert sorted(listed) == sorted(_verbs())

    @pytest.mark.parametrize("page", PAGES, ids=_id)
    def test_the_command_line_understands_every_command_of_a_page(self, page: Path) -> None:
        """Parsed only: what the commands do is tested elsewhere."""
        for line in re.findall(r"^\s*nbtl-search (.+)$", page.read_text("utf-8"), re.MULTILINE):
            verb, *arguments = shlex.split(line.partition(" > ")[0], comments=True)
            command = app.get_command(click.Context(app), verb)
            assert command is not None, line
            command.make_context(verb, arguments)

    def test_links_between_documents_lead_somewhere(self) -> None:
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
            for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text("utf-8")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"

    def test_the_changelog_has_an_unreleased_section(self) -> None:
        assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


class TestLock:
    def test_it_names_no_host_but_pypi(self) -> None:
        hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text("utf-8")))
        assert hosts == {"pypi.org", "files.pythonhosted.org"}

    def test_it_holds_every_dependency(self) -> None:
        lock = tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))
        locked = {package["name"] for package in lock["package"]}
        assert set(_dependencies()) <= locked


# Keys whose meaning is a section or a sentence of docs/studies.md, not a row of a table.
TABLES = ("augment", "budget", "data", "methods", "model", "search", "train")
ROW = ("high", "low", "options", "fixed")


def _keys(model: type[Value]) -> set[str]:
    """Return the names of all fields, inner ones too, but for those that `create` fills in."""
    keys = set(model.model_fields)
    for name, field in model.model_fields.items():
        if name in {"facts", "advice"}:
            continue
        for inner in _values_in(field.annotation):
            keys |= _keys(inner)
    return keys


def _values_in(annotation: object) -> Iterator[type[Value]]:
    if isinstance(annotation, type) and issubclass(annotation, Value):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _values_in(argument)
