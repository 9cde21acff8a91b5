"""A report on paper: nothing is cut off where a screen would scroll, nothing is folded."""

from pathlib import Path
from typing import TYPE_CHECKING

from raygrad.reports import page

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

PAPER = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
CUT_OFF = "return [...document.querySelectorAll('.wide, pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
FOLDED = "return [...document.querySelectorAll('details table')].filter(e => !e.checkVisibility()).length"


def test_a_report_is_printed_whole(run_root: Path, tmp_path: Path, browser: "WebDriver") -> None:
    runs = [run for name in ("fedga", "fedavg") for run in (run_root / name).iterdir()]
    out = page.write_report(runs, tmp_path / "report.html")
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PAPER)
        browser.get(out.as_uri())
        assert browser.execute_script(CUT_OFF) and browser.execute_script(FOLDED), "on a screen one scrolls and unfolds"
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not browser.execute_script(CUT_OFF)
        assert not browser.execute_script(FOLDED)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
