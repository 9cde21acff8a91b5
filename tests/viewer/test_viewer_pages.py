"""The viewer's pages in a real Chromium: what they show, that they live, and that everybody can use them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import viewing

from raygrad import run as engine
from raygrad.algorithms.fedga import FedGA
from raygrad.experiment import Where
from raygrad.reports import report, sweep_report
from raygrad.sweeps.sweep import load
from raygrad.verify import problem

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

WAIT_S = 60


def runs(root: Path, name: str) -> list[str]:
    return sorted(f"{name}/{p.name}" for p in (root / name).iterdir())


class Page:
    """A page in the browser. Leaving it checks that the console has no error."""

    def __init__(self, driver: "WebDriver", address: str) -> None:
        self.driver = driver
        driver.get_log("browser")  # what pages before said
        driver.get(address)

    def until(self, script: str, *arguments: Any) -> Any:
        """Waits until a JavaScript expression is true, and gives it."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, WAIT_S, 0.05).until(
            lambda d: d.execute_script(f"return {script}", *arguments), f"{script}\n{self.text()}"
        )

    def text(self) -> str:
        return self.driver.execute_script("return document.body.innerText")

    def says(self, text: str) -> None:
        self.until("document.body.innerText.includes(arguments[0])", text)

    def click(self, text: str, kind: str = "button") -> None:
        self.driver.execute_script(
            "[...document.querySelectorAll(arguments[0])].find((e) => e.textContent.trim() === arguments[1]).click()",
            kind, text,
        )  # fmt: skip

    def charts(self, least: int) -> None:
        """Waits for so many charts."""
        self.until("document.querySelectorAll('.chart canvas').length >= arguments[0]", least)

    def drawn(self, heading: str, series: int = 0) -> list[list[float]]:
        """The points that a chart shows."""
        return self.until(
            "(() => { const f = [...document.querySelectorAll('figure')].find((f) => "
            "f.querySelector('h3')?.textContent === arguments[0]); const c = f && "
            "window.echarts?.getInstanceByDom(f.querySelector('.chart')); return c?.getOption()?.series?.[arguments[1]]"
            "?.data?.map((d) => d.value ?? d); })()",
            heading, series,
        )  # fmt: skip

    def quiet(self) -> None:
        errors = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert errors == []


@pytest.fixture
def page(browser: "WebDriver") -> Iterator[Callable[[str], Page]]:
    """Opens pages; none of them may have put an error on the console."""
    opened: list[Page] = []

    def open_page(address: str) -> Page:
        for p in opened:
            p.quiet()
        opened.append(Page(browser, address))
        return opened[-1]

    yield open_page
    for p in opened[-1:]:
        p.quiet()


Open = Callable[[str], Page]


def test_the_list_is_searched_and_sorted(page: Open, viewer: str, run_root: Path) -> None:
    p = page(viewer)
    p.says("6 of 6")
    rows = "[...document.querySelectorAll('tbody tr')].map((r) => r.querySelector('th').innerText)"
    known = [at for n in ("fedga", "fedavg", "stopped") for at in runs(run_root, n)]
    assert sorted(p.until(rows)) == sorted([*known, f"{runs(run_root, 'searched')[0]} (sweep)"])
    search = (
        "const e = document.querySelector('input[type=search]'); e.value = arguments[0];"
        "e.dispatchEvent(new Event('input'))"
    )
    wanted = runs(run_root, "fedavg")[1]
    p.driver.execute_script(search, f"fedavg {wanted.split('/')[1]}")
    p.says("1 of 6")
    assert p.until(rows) == [wanted]
    p.driver.execute_script(search, "")
    p.driver.execute_script(
        "const e = document.querySelector('select'); e.value = 'stopped'; e.dispatchEvent(new Event('change'))"
    )
    p.says("1 of 6")
    assert "state=stopped" in p.driver.current_url  # what is looked at can be shared
    p.driver.refresh()
    p.says("1 of 6")


def test_a_run_shows_what_its_tables_hold(page: Open, viewer: str, run_root: Path) -> None:
    at = runs(run_root, "fedga")[0]
    v = report.view(run_root / at)
    p = page(f"{viewer}run/{at}")
    p.charts(9)
    for label, value in report.summary_of(v):
        assert label in p.text() and value in p.text()
    for text in ("finished", "Participation", "Hosts and gangs", "Data distribution", "raygrad run", "raygrad digest"):
        p.says(text)
    measured = np.isfinite(v.accuracy)
    np.testing.assert_allclose(p.drawn("validation accuracy"), np.c_[v.round[measured], v.accuracy[measured]], 1e-5)
    np.testing.assert_allclose(p.drawn("r(x)"), np.c_[v.probes.round, v.probes.values["r"]], 1e-5)
    p.click("communications")
    p.until("document.querySelector('.chart[aria-label*=\"against communications\"]') !== null")
    np.testing.assert_allclose(
        p.drawn("validation accuracy"), np.c_[v.communications[measured], v.accuracy[measured]], 1e-5
    )
    p.says("16 attempts from")
    p.click("+")
    p.until("!document.body.innerText.includes('16 attempts from')")
    p.click("All")
    p.says("16 attempts from")


def test_runs_are_chosen_and_compared(page: Open, viewer: str, run_root: Path) -> None:
    p = page(viewer)
    p.says("6 of 6")
    chosen = [*runs(run_root, "fedga"), *runs(run_root, "fedavg")]
    for at in chosen:
        p.driver.find_element("css selector", f"[aria-label='Choose {at}']").click()
    p.click("Compare 4")
    p.says("Settings that differ")
    p.charts(9)
    header, rows = report.comparison([run_root / at for at in chosen])
    for cell in (*header, *(c for row in rows for c in row)):
        assert cell in p.text()
    groups = report.group(report.views([run_root / at for at in chosen]))
    both = np.stack([v.loss[np.isfinite(v.loss)] for v in groups[0].runs])
    np.testing.assert_allclose([y for _, y in p.drawn("validation loss")], both.mean(0), 1e-5)
    assert "algorithm.beta" in p.text()


def test_a_sweep_shows_its_trials(page: Open, viewer: str, run_root: Path) -> None:
    at = runs(run_root, "searched")[0]
    loaded = load(run_root / at)
    p = page(f"{viewer}sweep/{at}")
    p.charts(5)
    header, rows = sweep_report.table(loaded)
    for cell in (*header, *rows[0], "4: 4 finished", "raygrad run"):
        assert cell in p.text()
    listed = sweep_report.listed(loaded, sweep_report.trials(loaded))
    shown = p.until(
        "[...document.querySelectorAll('[aria-label=\"The best first\"] tbody tr')]"
        ".map((r) => r.innerText.split('\\t'))"
    )
    assert [row[:-1] for row in shown] == listed.rows
    points = p.drawn("all trials")
    assert sorted((x, y) for x, y, _ in points) == [(0.05, 1), (0.05, 2), (0.1, 1), (0.1, 2)]
    p.says("4 of 4 trials")
    p.click("0000-0", "a")
    p.says("A trial of")


def test_a_page_lives_while_a_run_writes(page: Open, browser: "WebDriver", tmp_path: Path) -> None:
    experiment = replace(problem(FedGA()), rounds=6)
    playing = engine.rounds(experiment, Where(on="local"), run_root=tmp_path, name="live")
    first = next(playing)
    with viewing(tmp_path) as address:
        p = page(f"{address}run/live/{first.folder.name}")
        p.says("live · round 1 of 6")
        next(playing), next(playing)
        p.says("live · round 3 of 6")
        p.until("document.querySelector('progress').value === 3")
        for _ in playing:
            pass
        p.says("finished")
        v = report.view(first.folder)
        p.until("[...document.querySelectorAll('figure')].length > 2")
        last = int(v.round[np.isfinite(v.accuracy)][-1])
        drawn = "window.echarts.getInstanceByDom(document.querySelector('.chart')).getOption().series[0].data"
        p.until(f"Math.max(...{drawn}.map((d) => d[0])) === arguments[0]", last)
        p.quiet()
        browser.get("about:blank")


def test_what_cannot_be_shown_is_said(page: Open, viewer: str, browser: "WebDriver") -> None:
    for place in ("run/fedga/none", "sweep/fedga/none", "compare?runs=fedga/none"):
        p = Page(browser, viewer + place)
        p.says("has no")
        assert "Traceback" not in p.text()
    browser.get_log("browser")  # a 404 is an error there


SIZES = {"desktop": (1280, 1400), "phone": (390, 844)}


def places(run_root: Path) -> dict[str, str]:
    ga, avg = runs(run_root, "fedga"), runs(run_root, "fedavg")
    sweep = runs(run_root, "searched")[0]
    return {
        "list": "", "run": f"run/{ga[0]}", "compare": f"compare?runs={ga[0]},{avg[0]}", "sweep": f"sweep/{sweep}"
    }  # fmt: skip


@pytest.mark.parametrize("ground", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["list", "run", "compare", "sweep"])
def test_everybody_can_use_it(
    page: Open, viewer: str, run_root: Path, browser: "WebDriver", name: str, size: str, ground: str
) -> None:
    """axe finds nothing serious on any page, at the width of a phone nothing has to be scrolled sideways."""
    from axe_core_python.selenium import Axe

    media = [{"name": "prefers-color-scheme", "value": ground}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        p = page(viewer + places(run_root)[name])
        p.says("6 of 6" if name == "list" else "Learning")
        if name != "list":
            p.charts(2)
        found = Axe().run(browser)
        serious = [
            f"{v['id']}: {v['help']} at {[n['target'] for n in v['nodes']][:3]}"
            for v in found["violations"] if v["impact"] in ("serious", "critical")
        ]  # fmt: skip
        assert serious == []
        assert p.until("[document.documentElement.scrollWidth]")[0] <= width
        ink, paper = p.until(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            ".map((c) => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))"
        )
        assert (ink < paper) == (ground == "light")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_keyboard_is_enough(page: Open, viewer: str, run_root: Path, browser: "WebDriver") -> None:
    """Everything that can be clicked can be reached by Tab, in order, and is seen to be there."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    p = page(viewer)
    p.says("6 of 6")
    reached: list[str] = []
    for _ in range(60):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focused = browser.switch_to.active_element
        reached.append(focused.get_attribute("aria-label") or focused.text or focused.tag_name)
        if focused.text == runs(run_root, "fedga")[0]:
            assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused) == "solid"
            ActionChains(browser).send_keys(Keys.ENTER).perform()
            p.says("What the run did")
            break
    else:
        raise AssertionError(reached)
    assert reached[0] == "Skip to content" and "Search runs" in reached


def test_the_focus_stays_where_it_was(page: Open, viewer: str, run_root: Path, browser: "WebDriver") -> None:
    """Sorting and choosing draw the list anew; who does it by keyboard goes on from the same place."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    p = page(viewer)
    p.says("6 of 6")
    chosen = f"Choose {runs(run_root, 'fedga')[0]}"
    p.driver.find_element("css selector", f"[aria-label='{chosen}']").send_keys(Keys.SPACE)
    p.until("document.activeElement.getAttribute('aria-label') === arguments[0]", chosen)
    p.until("document.activeElement.checked")
    browser.execute_script(
        "[...document.querySelectorAll('thead button')].find((e) => e.textContent === 'State').focus()"
    )
    for arrow in ("↓", "↑"):
        ActionChains(browser).send_keys(Keys.ENTER).perform()
        p.until("document.activeElement.textContent === arguments[0]", f"State {arrow}")
