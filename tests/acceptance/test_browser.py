"""The dashboard in a real browser: what a person sees, and what a page cannot do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nbtl_search.ledger import database
from nbtl_search.reports.dashboard.server import page
from nbtl_search.reports.terminal.status import status_of
from nbtl_search.study import store
from tests.acceptance.chromium import chromium
from tests.plausible_study import fill, make_spec

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PATIENCE_S = 60
HOSTILE = "<img src=x onerror=document.title='taken'>"
SERVE = """
import sys
from pathlib import Path
from nbtl_search.reports.dashboard.server import serve
from nbtl_search.ledger.database import connect
with_database = connect(None, home=Path(sys.argv[1]))
serve(with_database, port=0, ready=lambda address: print(address, flush=True))
"""


@pytest.fixture(scope="module")
def study(home):
    opened = database.connect(None, home=home)
    database.create_or_upgrade(opened)
    spec = make_spec(n_trials=10, n_epochs=10)
    known = [*spec.search.known[:1], spec.search.known[1].replace(name=HOSTILE)]
    made = store.create(opened, spec.replace(search=spec.search.replace(known=tuple(known))))
    fill(made, n_trials=8, running=1)
    yield made
    opened.close()


@pytest.fixture(scope="module")
def address(home, study):  # noqa: ARG001  (a study must be there to be shown)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(home)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Where the screenshots go, to be looked at."""
    given = os.environ.get("NBTL_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile=profile, size="1500,1100", logs=("browser",)) as opened:
        opened.set_script_timeout(PATIENCE_S)
        yield opened


def wait(browser, condition):
    return WebDriverWait(browser, PATIENCE_S).until(condition)


def text_of(browser):
    return browser.find_element(By.TAG_NAME, "body").text


def troubles(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_list_shows_the_study(browser, address, study, pictures):
    browser.get(address)
    wait(browser, lambda b: study.name in text_of(b))
    assert browser.current_url.startswith(f"{address}dashboard")
    browser.save_screenshot(str(pictures / "list.png"))
    assert troubles(browser) == []


def test_the_study_page_shows_our_figures_and_the_verdict(browser, address, study, pictures):
    browser.set_window_size(1500, 3000)
    browser.get(f"{address}{page(study.id)}")
    titles = {
        "Search history",
        "Learning curves of all trials",
        "Not binary: rate, new layers, L2-SP",
        "Each dial alone (pruned trials faint)",
        "Learning rate, by number of new layers",
        "Blocks at the low rate",
        "L2-SP against L2",
        "Best found against default: means over seeds",
    }

    def drawn(opened):
        found = opened.find_elements(By.CSS_SELECTOR, "[id^='user-defined-plot:'] .gtitle")
        return {title.text for title in found} == titles

    wait(browser, drawn)
    points = browser.find_elements(
        By.CSS_SELECTOR, "[id='user-defined-plot:nbtl-non-binary'] .scatterlayer .points path"
    )
    lines = browser.find_elements(
        By.CSS_SELECTOR, "[id='user-defined-plot:nbtl-learning-curves'] .scatterlayer path.js-line"
    )
    assert len(points) >= 8  # as many trials have begun
    assert len(lines) >= 4
    best = status_of(study).best
    assert best is not None
    wait(browser, lambda b: f"{best['value']:.2f} %" in text_of(b))
    width, seen = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert width <= seen, "the page is wider than the window"
    browser.save_screenshot(str(pictures / "study.png"))
    assert troubles(browser) == []


def test_a_trial_page_shows_its_learning_curve(browser, address, study, pictures):
    browser.set_window_size(1500, 1100)
    browser.get(f"{address}{page(study.id)}/trials?numbers=1")
    curve = wait(
        browser,
        lambda b: b.find_elements(By.CSS_SELECTOR, "img[src^='/learning-curve/']"),
    )[0]
    wait(browser, lambda b: b.execute_script("return arguments[0].naturalWidth", curve) == 640)
    assert "10 of 10 epochs, complete; best" in text_of(browser)
    n_listed = len(re.findall(r"^Trial \d+$", text_of(browser), re.MULTILINE))
    assert n_listed == len(study.optuna.trials)
    browser.save_screenshot(str(pictures / "trial.png"))
    assert troubles(browser) == []
    assert browser.title != "taken"


def test_the_note_says_what_is_searched(browser, address, study, pictures):
    browser.get(f"{address}{page(study.id)}/note")
    wait(browser, lambda b: "lr_low_ratio" in text_of(b))
    assert "How to read this" in text_of(browser)
    assert HOSTILE in text_of(browser)
    browser.save_screenshot(str(pictures / "note.png"))
    assert browser.title != "taken"


def test_a_delete_from_the_pages_own_script_is_refused(browser, address, study):
    browser.get(f"{address}dashboard")
    status, answer = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        fetch(arguments[0], {method: "DELETE"})
            .then(async (answer) => done([answer.status, await answer.text()]))
            .catch((error) => done([0, String(error)]));
        """,
        f"/api/studies/{study.id}",
    )
    assert status == 405
    assert "the method must be GET or HEAD" in answer
    assert [summary.name for summary in store.names(study.storage)] == [study.name]
    assert status_of(study).complete > 0


def test_a_foreign_page_reads_nothing(browser, address):
    browser.get("data:text/html,<title>foreign</title>")
    status = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        fetch(arguments[0]).then((answer) => done(answer.status)).catch(() => done("refused"));
        """,
        f"{address}api/studies",
    )
    assert status == "refused"
