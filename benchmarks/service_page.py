"""The page in headless Chromium: the flows of its tests, what axe finds, and how long a plan takes after a slider: of a
made-up model of four layers, and of the one of 32 layers of `benchmarks.serving`, by its predictor.

Needs Debian's chromium and axe-core (`make bench-service` installs axe-core): LOP_CHROMIUM and LOP_AXE name them.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks.machine import ROOT
from benchmarks.service_processes import Server, database, running
from benchmarks.serving import LARGE, ROUND_TO, large_model, register_large
from benchmarks.steps import Steps
from pruning.checkpoints.anatomy_reader import anatomy_of
from storage.sql_repository import open_repository
from tests.service.page.test_browser import AXE, CHROMIUM, DESK, PHONE, all_paths, filled, opened, slider_milliseconds
from tests.service.page.test_browser import violations as axe_violations

TESTS = "tests/service/page/test_browser.py"

Row = dict[str, Any]


def page(folder: Path, steps: Steps) -> tuple[Row, list[Row]]:
    """Summary and rows. Raises RuntimeError without a browser or axe-core."""
    if not (AXE and CHROMIUM):
        raise RuntimeError("the page is measured in chromium with axe-core: set LOP_AXE and LOP_CHROMIUM")
    modules = (__name__, "lop.commands.serve")
    document = steps.call("page", [], partial(_page, folder), modules=modules).document
    rows = [{"part": "page", **row} for row in document.pop("rows")]
    return document, rows


def _page(folder: Path) -> Row:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with database("sqlite", folder) as (url, _), sync_playwright() as playwright:
        filled(url, is_given=False)
        with torch.device("meta"):
            anatomy = anatomy_of(large_model())
        with open_repository(url) as repository:
            register_large(repository, anatomy)
        server = Server(url, folder)
        with running(server):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for path in all_paths(server.url):
                for scheme in ("light", "dark"):
                    for name, viewport in (("desk", DESK), ("phone", PHONE)):
                        shown = opened(browser, server.url + path, viewport=viewport, color_scheme=scheme)
                        shown.wait_for_timeout(500)
                        # A target that no plan meets is answered by 422, which the browser notes.
                        if errors := [error for error in shown.errors if "422" not in error]:
                            raise RuntimeError(f"{path} went wrong: {errors[0]}")
                        found = axe_violations(shown)
                        rows.append({"path": path, "scheme": scheme, "viewport": name, "violations": found})
                        shown.context.close()
            took = slider_milliseconds(opened(browser, f"{server.url}/explorer"))
            address = f"{server.url}/explorer?model={LARGE}&round_to={ROUND_TO}&method=lop"
            of_large = slider_milliseconds(opened(browser, address))
            browser.close()
    flows = _flows(folder)
    return {
        "slider_to_plan_p50_ms": took[len(took) // 2],
        "slider_to_plan_longest_ms": took[-1],
        "slider_to_plan_of_32_layers_p50_ms": of_large[len(of_large) // 2],
        "slider_to_plan_of_32_layers_longest_ms": of_large[-1],
        "axe_violations": sum(len(row["violations"]) for row in rows),
        "page_flows": sum(flows.values()),
        "page_flows_failed": flows["failed"] + flows["skipped"],
        "rows": rows,
    }


def _flows(folder: Path) -> dict[str, int]:
    """How many of the page's tests passed, failed, and were skipped, in a process of their own."""
    report = folder / "flows.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", TESTS, "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run(command, cwd=ROOT, check=False, env=dict(os.environ), stdout=sys.stderr)  # noqa: S603
    suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314 (pytest wrote it)
    assert suite is not None
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    if total == skipped:
        raise RuntimeError(f"no test of {TESTS} was run")
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}
