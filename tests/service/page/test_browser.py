"""The page in Chromium: every flow by mouse and keyboard and without JavaScript, and what axe finds: `make test-page`.

LOP_AXE names axe-core's script, LOP_CHROMIUM the browser; LOP_SCREENSHOTS a folder for the pictures of docs/page.md,
and LOP_PAGE_DATABASE a database to take them of (that of `make demo`), which is copied.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.keys import new_key
from storage.contract import Repository
from storage.database import upgrade
from storage.records import JobProgress, KeyScope, NewJob
from storage.sql_repository import open_repository
from tests.service.made_up import add_calibration, add_search, register_model, scan_samples
from tests.service.test_server import running

AXE = os.environ.get("LOP_AXE", "")
CHROMIUM = os.environ.get("LOP_CHROMIUM", shutil.which("chromium") or "")
SHOTS = os.environ.get("LOP_SCREENSHOTS", "")
GIVEN = os.environ.get("LOP_PAGE_DATABASE", "")

pytestmark = pytest.mark.skipif(not (AXE and CHROMIUM), reason="needs a browser and axe-core: `make test-page`")

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def filled(url: str, *, is_given: bool) -> str:
    """The id of a job that runs, in a database with a model and what is known of it."""
    with open_repository(url) as repository:
        if not is_given:
            model = register_model(repository)
            calibration = add_calibration(repository)
            repository.add_samples(scan_samples(model, calibration, (0.1, 0.2, 0.3, 0.4)))
            add_search(repository, (32, 32, 64, 32), 0.2, calibration_id=calibration)
        model_id = repository.list_models()[0].id
        settings = {"kind": "search", "model": model_id, "dataset": "d" * 64, "sparsities": [0.3, 0.5]}
        stale = timedelta(hours=1)
        for error in (None, "the disk must have room: 0 bytes are left"):
            repository.add_job(NewJob("search", model_id, settings, "loopback"))
            ended = repository.claim_job("worker", stale_after=stale)
            assert ended is not None
            repository.finish_job(ended.id, "worker", error=error)
        job, _ = repository.add_job(NewJob("search", model_id, settings, "loopback"))
        repository.claim_job("worker", stale_after=stale)
        for stage, start in (("sparsity 0.3 (ffn)", 0.2), ("sparsity 0.5 (ffn)", 1.5)):
            for done in range(1, 31, 3):
                progress = JobProgress(done, 200, stage, start / done**0.4, 420.0)
                line = f"INFO {stage}: {done} of 200 evaluations, best KL {progress.best:.4f}"
                repository.report_job(job.id, "worker", progress=progress, as_event=True, log=[line])
        return job.id


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """The server's URL, the id of a running job, and the database's URL."""
    folder = tmp_path_factory.mktemp("page")
    database = f"sqlite:///{folder}/lop.db"
    if GIVEN:
        shutil.copy(GIVEN, folder / "lop.db")
        upgrade(database)
    else:
        open_repository(database, create=True).close()
    job = filled(database, is_given=bool(GIVEN))
    with running(database, folder / "server.log") as (_, url):
        yield url, job, database


def opened(browser: Any, url: str, **options: Any) -> Any:
    """A page of a browser of its own, whose errors fail the test."""
    context = browser.new_context(viewport=options.pop("viewport", DESK), reduced_motion="reduce", **options)
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    # htmx tells the console of every request that a newer one of the same form has taken the place of.
    page.on("console", lambda x: page.errors.append(x.text) if x.type == "error" and "htmx:" not in x.text else None)
    page.goto(url)
    return page


def violations(page: Any) -> list[str]:
    """What axe-core finds, past the page's policy: it is brought in by the debugger."""
    page.evaluate(Path(AXE).read_text() + "\n;undefined")
    found = page.evaluate("async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)])")
    return [f"{name}: {nodes[0][:160]}" for name, nodes in found]


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png")


def all_paths(url: str) -> list[str]:
    """Of every kind of page, with every job and two plans that are compared."""
    with httpx.Client(base_url=url) as client:
        jobs = [job["id"] for job in client.get("/v1/jobs").json()["items"]]
        model = client.get("/v1/models").json()["items"][0]["id"]
        answers = [client.post("/v1/plans", json={"model": model, "sparsity": share}) for share in (0.25, 0.5)]
        left, right = (answer.json()["plan_id"] for answer in answers)
    paths = ["/", "/explorer?device=l4", "/explorer?sparsity=0.9999", "/jobs", *(f"/jobs/{job}" for job in jobs)]
    return [
        *paths,
        f"/plans/{left}",
        "/compare",
        f"/compare?left={left}&right={right}",
        "/devices",
        "/devices/l4",
        "/login",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    browser: Any, place: tuple[str, str, str], viewport: dict[str, int], scheme: str
) -> None:
    url, job, _ = place
    for path in all_paths(url):
        page = opened(browser, url + path, viewport=viewport, color_scheme=scheme)
        page.wait_for_load_state("networkidle") if "/jobs" not in path else page.wait_for_timeout(300)
        assert violations(page) == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], path
        name = (path.split("?")[0].replace(f"/{job}", "/job").strip("/") or "models").replace("/", "-")
        if "0.9999" not in path and path != "/compare":
            shot(page, f"{name}-{'desk' if viewport is DESK else 'phone'}-{scheme}")
        assert [x for x in page.errors if "422" not in x] == []
        page.context.close()


def test_the_reference_asks_no_other_site(browser: Any, place: tuple[str, str, str]) -> None:
    url, _, _ = place
    context = browser.new_context(viewport=DESK)
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{url}/docs")
    page.get_by_text("/v1/plans", exact=True).first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".responses-table.live-responses-table").wait_for()
    assert f"{url}/v1/plans" in asked
    assert [x for x in asked if not x.startswith((url, "data:"))] == []
    assert [x for x in errors if "422" not in x and "404" not in x] == []
    context.close()


def test_a_slider_shows_another_plan_and_the_address_reproduces_it(browser: Any, place: tuple[str, str, str]) -> None:
    url, _, _ = place
    page = opened(browser, f"{url}/explorer")
    page.wait_for_load_state("networkidle")
    before = page.locator("#result .id").first.text_content()
    slider = page.get_by_label("Share to remove, slider")
    slider.focus()
    with page.expect_response(lambda answer: "/explorer?" in answer.url and "curve" not in answer.url):
        for _ in range(20):
            page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('#result .id').textContent !== before", arg=before)
    page.wait_for_function(
        "() => new URLSearchParams(location.search).get('sparsity') === document.getElementById('sparsity').value"
    )
    assert page.evaluate("document.activeElement.type") == "range"
    plan = page.locator("#result .id").first.text_content()
    assert "sparsity=0." in page.url
    assert opened(browser, page.url).locator("#result .id").first.text_content() == plan
    page.get_by_label("limits").check()
    memory = page.get_by_label("Memory", exact=False).first
    assert memory.is_visible()
    assert not page.get_by_label("Share to remove, slider").is_visible()
    assert page.errors == []


def test_memory_and_latency_are_dragged_and_the_plans_keep_to_them(browser: Any, place: tuple[str, str, str]) -> None:
    url, _, _ = place
    page = opened(browser, f"{url}/explorer?device=l4&ask=budget")
    page.wait_for_load_state("networkidle")
    seen = {page.locator("#result .id").first.text_content()}
    most: dict[str, float] = {}
    for name, field, achieved, unit in (
        ("Memory", "memory_mib", "memory_bytes", 2**20),
        ("Latency", "latency_ms", "latency_ms", 1),
    ):
        box = page.get_by_label(f"{name}, slider").bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] - 10, middle)  # no limit yet: the knob is at the end
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * (0.6 if name == "Memory" else 0.4), middle, steps=5)
        page.mouse.up()
        page.wait_for_function(
            "seen => !seen.includes(document.querySelector('#result .id').textContent)", arg=sorted(seen)
        )
        page.wait_for_load_state("networkidle")
        plan = page.locator("#result .id").first.text_content()
        seen.add(plan)
        asked = page.locator(f"#{field}").input_value()
        assert f"{field}={asked}" in page.url
        most[achieved] = float(asked) * unit
        found = httpx.get(f"{url}/v1/plans/{plan}").json()["achieved"]
        assert [of for of, limit in most.items() if not 0 < found[of] <= limit] == []  # memory's still, beside latency
    assert page.errors == []


def test_how_long_a_plan_takes_after_a_slider(browser: Any, place: tuple[str, str, str]) -> None:
    """Reported, not asserted: from the end of the drag to the picture of a plan that nobody asked for before."""
    url, _, _ = place
    took = slider_milliseconds(opened(browser, f"{url}/explorer"))
    print(f"\nfrom a slider's end to the plan: median {took[len(took) // 2]:.0f} ms, longest {took[-1]:.0f} ms")  # noqa: T201
    assert len(took) == 20


def slider_milliseconds(page: Any) -> list[float]:
    """Of twenty plans that nobody asked for before, in order of size."""
    page.wait_for_load_state("networkidle")
    took = []
    for value in range(100, 300, 10):
        before = page.locator("#result .id").first.text_content()
        started = time.perf_counter()
        page.get_by_label("Share to remove, slider").evaluate(
            "(x, v) => { x.value = v; x.dispatchEvent(new Event('input', {bubbles: true}));"
            " x.dispatchEvent(new Event('change', {bubbles: true})); }",
            str(value),
        )
        page.wait_for_function("before => document.querySelector('#result .id').textContent !== before", arg=before)
        took.append((time.perf_counter() - started) * 1000)
        page.wait_for_load_state("networkidle")
    return sorted(took)


def test_the_curve_of_all_methods_comes_by_itself(browser: Any, place: tuple[str, str, str]) -> None:
    page = opened(browser, f"{place[0]}/explorer?sparsity=0.5{'' if GIVEN else '&method=evolution'}")
    page.locator("#result svg.chart").wait_for()
    assert page.locator("#result svg.chart .line").count() >= 1
    assert page.locator("#result svg.chart .mark").count() == 1
    page.locator("#result svg.chart").scroll_into_view_if_needed()
    shot(page, "explorer-curve")


def test_everything_works_without_javascript(browser: Any, place: tuple[str, str, str]) -> None:
    url, _, _ = place
    page = opened(browser, url, java_script_enabled=False)
    page.get_by_role("link", name=re.compile("^Explore ")).first.click()
    page.get_by_label("Share to remove").fill("0.42")
    page.get_by_role("button", name="Show the plan").click()
    assert "sparsity=0.42" in page.url
    plan = page.locator("#result .id").first.text_content()
    page.get_by_role("link", name="Draw the curve of all methods").click()
    assert page.locator("svg.chart").count() == 1
    page.go_back()
    page.get_by_role("link", name="Compare with another plan").click()
    page.get_by_role("link", name="Find it in the explorer").click()
    page.get_by_label("Share to remove").fill("0.2")
    page.get_by_role("button", name="Show the plan").click()
    page.get_by_role("link", name="Compare with the plan that was kept").click()
    assert f"left={plan}" in page.url
    assert page.locator("svg.kept").count() == 2
    shot(page, "compare-desk-light")


def test_a_job_is_watched_and_cancelled(browser: Any, place: tuple[str, str, str]) -> None:
    url, job, database = place
    page = opened(browser, f"{url}/jobs")
    page.get_by_role("link", name=job[:12]).click()
    assert page.locator("svg.chart .line").count() >= 1
    with open_repository(database) as repository:
        live(repository, job)
        page.get_by_text("INFO news").wait_for()  # it comes by itself
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("cancelling").wait_for()
        assert repository.get_job(job).is_cancelling
    assert page.errors == []


def live(repository: Repository, job: str) -> None:
    repository.report_job(job, "worker", progress=JobProgress(40, 200, "late", 0.1), as_event=True, log=["INFO news"])


def test_logging_in_and_out_by_keyboard(browser: Any, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/lop.db"
    with open_repository(database, create=True) as repository:
        register_model(repository)
        record, key = new_key("notebook", KeyScope.PLAN)
        repository.add_key(record)
    with running(database, tmp_path / "server.log") as (_, url):
        page = opened(browser, f"{url}/explorer?sparsity=0.5")
        assert "/login" in page.url
        page.get_by_label("Key").focus()
        page.keyboard.type("lop_wrong")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        assert violations(page) == []
        page.get_by_label("Key").focus()
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        page.wait_for_url("**/explorer?sparsity=0.5")
        [cookie] = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["value"]) == (True, "Strict", key)
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/login")
        assert page.goto(f"{url}/jobs").url.endswith("/login?next=%2Fjobs")
