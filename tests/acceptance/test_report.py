"""The report, opened from disk in a real browser: nothing leaves it, everything draws."""

import base64
import dataclasses
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from selenium.webdriver.support.ui import WebDriverWait

from nbtl_search.cli.results import report_command
from nbtl_search.ledger import database
from nbtl_search.ledger.records import default_of
from nbtl_search.reports.content import gather
from nbtl_search.reports.page import page
from nbtl_search.study import store
from tests.acceptance.chromium import chromium
from tests.plausible_study import fill, make_spec
from tests.plausible_verdict import make_verdict

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PATIENCE_S = 60
LOGS = ("browser", "performance")
HOSTILE = "<script>document.title='taken'</script>\"quotes' 🐟 מגן"
TESTS = [[77.0, 78.0, 76.5, 77.5], [80.5, 81.5, 80.0, 82.0]]


@pytest.fixture(scope="module")
def study(home):
    opened = database.connect(None, home=home)
    database.create_or_upgrade(opened)
    spec = make_spec(n_trials=24, n_epochs=10)
    known = (spec.search.known[0], spec.search.known[1].replace(name=HOSTILE, reason=HOSTILE))
    search = spec.search.replace(known=known)
    made = store.create(opened, spec.replace(search=search, description=HOSTILE))
    fill(made, n_trials=24, running=1, failed=1)
    yield made
    opened.close()


@pytest.fixture(scope="module")
def place(study, tmp_path_factory):
    """The page of a study with final runs."""
    content = gather(study, None)
    best = next(trial for trial in content.trials if trial.name == HOSTILE)
    default = default_of(content.trials)
    assert default is not None
    verdict = make_verdict(
        [default, best],
        winner=best.number,
        tests=TESTS,
        reasons=("", HOSTILE),
    )
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(dataclasses.replace(content, verdict=verdict)), "utf-8")
    return file


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Where the screenshots go, to be looked at."""
    given = os.environ.get("NBTL_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def browser(tmp_path):
    with chromium(profile=tmp_path / "profile", size="1280,1000", logs=LOGS) as opened:
        yield opened


def opened_page(browser, place):
    browser.get(place.as_uri())
    WebDriverWait(browser, PATIENCE_S).until(
        lambda b: b.execute_script("return document.body.classList.contains('drawn')")
    )


def requests(browser):
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if "request" in event["params"]]
    return [url for url in sent if not url.startswith(("data:", "blob:"))]


def save(browser, file):
    size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    settings = {"captureBeyondViewport": True, "clip": clip}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", settings)
    file.write_bytes(base64.b64decode(shot["data"]))


def test_it_asks_for_nothing_but_itself_and_every_figure_draws(browser, place, pictures):
    browser.get("about:blank")
    browser.get_log("performance")  # of the browser's own first page
    opened_page(browser, place)
    assert requests(browser) == [place.as_uri()]
    drawn = browser.execute_script(
        """
        return [...document.querySelectorAll(".plot")].map((plot) => {
            const marks = plot.querySelectorAll(".trace path, .trace .point, .points path").length;
            const box = plot.querySelector("svg.main-svg").getBoundingClientRect();
            return [plot.dataset.figure, marks, box.width, box.height];
        });
        """
    )
    names = [name for name, *_ in drawn]
    assert {"history", "curves", "dials", "rate", "low-layers", "l2sp", "optimal"} <= set(names)
    for name, n_marks, width, height in drawn:
        assert n_marks > 0, name
        assert width > 500, name
        assert height > 200, name
    logged = [entry["message"] for entry in browser.get_log("browser")]
    assert logged == []
    save(browser, pictures / "report-wide.png")


def test_a_connection_is_refused_by_its_own_policy(browser, place):
    opened_page(browser, place)
    answer = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        let broken = "";
        document.addEventListener("securitypolicyviolation", (event) => {
            broken = event.effectiveDirective;
        });
        fetch("http://127.0.0.1:9/").catch(() => setTimeout(() => done(broken), 50));
        """
    )
    assert answer == "connect-src"


def test_names_are_shown_as_text_and_run_nothing(browser, place, study):
    opened_page(browser, place)
    assert browser.title == f"{study.name}: nbtl-search report"
    seen = browser.execute_script(
        """
        for (const part of document.querySelectorAll("details")) part.open = true;
        return [document.body.innerText, document.querySelectorAll("script").length,
                document.querySelectorAll(".plot").length];
        """
    )
    text, n_scripts, n_figures = seen
    assert text.count(HOSTILE) >= 6  # about, verdict, two tables, known recipes, readings
    assert n_scripts == n_figures + 2
    labels = browser.execute_script(
        "return [...document.querySelectorAll('.plot svg text')].map((t) => t.textContent)"
    )
    assert any("<script>document.title='taken'</script>" in label for label in labels)


def test_a_phone_scrolls_down_only(browser, place, pictures):
    phone = {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    opened_page(browser, place)
    width, seen = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert seen == 375
    assert width <= seen
    save(browser, pictures / "report-phone.png")


def test_in_print_the_figures_fit_the_paper(browser, place, pictures):
    opened_page(browser, place)
    before = browser.execute_script(
        """
        window.dispatchEvent(new Event("beforeprint"));
        return [[...document.querySelectorAll(".plot svg.main-svg")].map((s) => s.clientWidth),
                document.querySelectorAll("details:not([open])").length];
        """
    )
    assert max(before[0]) <= 688  # A4 without its margins
    assert before[1] == 0
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    paper = base64.b64decode(printed["data"])
    assert paper.startswith(b"%PDF")
    (pictures / "report.pdf").write_bytes(paper)


class TestCommand:
    @staticmethod
    def run(home, *arguments):
        return CliRunner().invoke(report_command, ["dtd10", "--home", str(home), *arguments])

    def test_it_writes_the_page_and_the_figures(self, home, study, tmp_path):
        file, folder = tmp_path / "a.html", tmp_path / "figures"
        done = self.run(home, "-o", str(file), "--figures", str(folder))
        assert done.exit_code == 0, done.output
        assert f"nbtl-search finalize {study.name}" in file.read_text("utf-8")
        assert {"history.svg", "history.png", "history.csv"} <= {f.name for f in folder.iterdir()}
        assert not list(tmp_path.rglob(".*"))

    def test_a_dash_is_standard_output(self, home, study):
        done = self.run(home, "--format", "json", "-o", "-")
        assert json.loads(done.stdout)["study"] == study.name

    @pytest.mark.usefixtures("study")
    def test_a_folder_that_is_missing_is_refused_in_one_line(self, home, tmp_path):
        done = self.run(home, "-o", str(tmp_path / "no" / "a.html"))
        assert "must exist" in str(done.exception)
        assert "\n" not in str(done.exception)
        assert list(tmp_path.iterdir()) == []
