"""Every page as a client without JavaScript gets it."""

import hashlib
import itertools
import json
import re
import shlex
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from fastapi.testclient import TestClient

import lop
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import StorageUnavailableError
from pruning.planning.prices import memory_bytes
from pruning.planning.workload import Workload
from service.app import create_app
from service.keys import new_key
from service.page.assets import MEDIA_TYPES, asset
from service.page.curves import WIDTH
from service.page.rendering import HEADERS
from service.settings import Settings
from storage.contract import Repository
from storage.records import JobProgress, JobStatus, KeyScope, NewJob
from tests.lop.app_transport import AppTransport
from tests.service.conftest import AwayRepository
from tests.service.made_up import add_calibration, add_search, made_up_anatomy, register_model, scan_samples

ASSETS = Path(__file__).parents[3] / "service" / "page" / "assets"
PAGES = ("/", "/explorer", "/explorer/curve?model=tiny", "/jobs", "/compare", "/devices", "/devices/l4", "/login")


class Document(HTMLParser):
    """Elements of a page, with their attributes and the text within `pre` and `code`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def document(client: TestClient, path: str, status: int = 200) -> Document:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Document(answer.text)


def block(text: str, label: str) -> str:
    """The text of the `pre` element with this label."""
    [found] = re.findall(rf'<pre[^>]*aria-label="{label}"[^>]*>(.*?)</pre>', text, re.DOTALL)
    return unescape(found)


@pytest.fixture
def known(repository: Repository) -> None:
    """A scan and a search: two methods have something to say."""
    model = repository.get_model("tiny")
    calibration = add_calibration(repository)
    repository.add_samples(scan_samples(model, calibration, (0.1, 0.2, 0.3, 0.4)))
    add_search(repository, (32, 32, 64, 32), 0.2, calibration_id=calibration)


@pytest.fixture
def job(repository: Repository) -> str:
    """A search that runs."""
    settings = {"kind": "search", "model": "tiny", "dataset": "d" * 64, "sparsities": [0.3]}
    asked, _ = repository.add_job(NewJob("search", "tiny", settings, "loopback"))
    repository.claim_job("w", stale_after=timedelta(hours=1))
    for done, best in ((1, 0.5), (2, 0.4), (3, 0.4)):
        progress = JobProgress(done, 40, "sparsity 0.3", best, 30.0)
        repository.report_job(asked.id, "w", progress=progress, as_event=True, log=[f"INFO <{done}>"])
    return asked.id


def test_every_page_keeps_other_sites_and_scripts_out(client: TestClient, known: None, job: str) -> None:
    for path in (*PAGES, f"/jobs/{job}"):
        answer = client.get(path)
        assert answer.status_code == 200, path
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        page = Document(answer.text)
        assert not any(
            "style" in attributes or any(name.startswith("on") for name in attributes)
            for _, attributes in page.elements
        )
        assert all(attributes.get("src", "").startswith("/assets/") for attributes in page.all("script"))
        assert page.all("html")[0]["lang"] == "en"
        assert len(page.all("main")) == len(page.all("h1")) == 1
        labels = {attributes["for"] for attributes in page.all("label") if "for" in attributes}
        fields = [x for tag in ("input", "select") for x in page.all(tag) if x.get("type") not in ("hidden", "radio")]
        assert {x["id"] for x in fields} <= labels
        assert client.head(path).status_code == 200


def test_what_pages_load_is_there_for_good(client: TestClient) -> None:
    page = document(client, "/")
    addresses = [x["src"] for x in page.all("script")] + [x["href"] for x in page.all("link")]
    assert len(addresses) == 4
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"].startswith(("text/javascript", "text/css", "image/svg+xml"))
    for name in ("nothing.js", "htmx.LICENSE", "..%2fpaths.py"):
        assert client.get(f"/assets/{name}").status_code in (404, 422)


def test_the_reference_loads_what_is_in_the_package_and_nothing_else(client: TestClient) -> None:
    answer = client.get("/docs")
    assert dict(answer.headers).items() >= {name.lower(): value for name, value in HEADERS.items()}.items()
    assert "set-cookie" not in answer.headers
    page = document(client, "/docs")
    addresses = [x["src"] for x in page.all("script")] + [x["href"] for x in page.all("link")]
    assert len(addresses) == 4
    for address in addresses:
        assert address.startswith("/assets/")
        assert client.get(address).status_code == 200
    assert client.get("/redoc").status_code == 404


def test_files_of_others_are_what_is_written_down_of_them() -> None:
    table = re.findall(r"^\| `(\S+)` \| .* \| `([0-9a-f]{64})` \|$", (ASSETS / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in table} == set(MEDIA_TYPES) - {"page.js", "reference.js", "page.css", "icon.svg"}
    assert {name: hashlib.sha256(asset(name)).hexdigest() for name, _ in table} == dict(table)


def test_models_and_what_is_known_of_them(client: TestClient, repository: Repository, known: None) -> None:
    register_model(repository, "org/second <b>")
    text = client.get("/").text
    assert "org/second &lt;b&gt;" in text
    assert "/explorer?model=org%2Fsecond+%3Cb%3E" in text
    samples = repository.count_samples("tiny")
    assert re.search(rf"<dt>Samples</dt><dd>{samples}</dd>", text)
    assert re.search(r"<dt>Searches</dt><dd>1</dd>", text)
    assert "Next" in client.get("/?limit=1").text


def test_nothing_is_registered(client: TestClient, settings: Settings, empty_database: Any) -> None:
    with TestClient(create_app(Settings(database_url=f"sqlite:///{empty_database}"))) as empty:
        assert "lop model add" in empty.get("/").text
        assert "lop model add" in empty.get("/explorer").text


def test_the_explorer_shows_what_the_api_answers(client: TestClient, known: None) -> None:
    answer = client.get("/explorer?model=tiny&sparsity=0.42&device=l4&space=layers")
    shown = json.loads(block(answer.text, "JSON of the plan"))
    asked = {"model": "tiny", "sparsity": 0.42, "device": "l4", "space": "layers"}
    plan = client.post("/v1/plans", json=asked, headers={"Accept": "application/vnd.lop.plan.v2+json"}).json()
    assert shown == plan
    page = Document(answer.text)
    kept = sum(
        attributes.get("class") in ("ffn", "attention") and "rx" not in attributes for attributes in page.all("rect")
    )
    assert kept >= 4
    assert "Latency" in answer.text
    # The link is to the same page, and what htmx loads is a part of it.
    [link] = [x["href"] for x in page.all("a") if x["href"].startswith("/explorer?")]
    assert json.loads(block(client.get(link).text, "JSON of the plan")) == plan
    part = client.get(link, headers={"HX-Request": "true"})
    assert "<html" not in part.text
    assert part.headers["hx-push-url"] == "/explorer?model=tiny&ask=sparsity&sparsity=0.42&space=layers&device=l4"
    assert json.loads(block(part.text, "JSON of the plan")) == plan


def test_the_explorer_says_in_how_many_bits_weights_are(client: TestClient, repository: Repository) -> None:
    model = register_model(repository, "grouped", made_up_anatomy(hidden=32, fingerprint="e" * 64))
    in_eight = Architecture.of({Site(x.index, Sublayer.FFN): Option(x.ffn_width, 8) for x in model.anatomy.layers})
    mib = memory_bytes(model.anatomy, Workload()).cost(in_eight) / 2**20
    page = client.get("/explorer", params={"model": "grouped", "space": "bits", "memory_mib": repr(mib)})
    assert page.status_code == 200
    assert "64 of 64 channels, 8 bits" in page.text
    assert "<td>64 of 64, 8 bits</td>" in page.text
    assert "4 in 8 bits; 100% of KV groups" in page.text
    assert "paler in fewer bits" in page.text
    assert "paler in fewer bits" not in client.get("/explorer", params={"model": "grouped"}).text


def test_what_the_device_has_is_a_limit(client: TestClient) -> None:
    def memory_row(**fields: str) -> str:
        text = client.get("/explorer", params={"model": "tiny", "sparsity": "0.5", **fields}).text
        return text.partition('<th scope="row">Memory</th>')[2].partition("</tr>")[0]

    device = client.get("/v1/devices/l4").json()
    assert f"<td>{device['memory_bytes'] / 2**30:.3g} GiB</td>" in memory_row(device="l4")
    assert "none" in memory_row()
    of_both = memory_row(device="l4", ask="budget", memory_mib="4.5")
    assert "4.5 MiB" in of_both
    assert "GiB" not in of_both


def test_the_explorer_says_how_many_weights_are_zeroed(client: TestClient, repository: Repository) -> None:
    page = client.get("/explorer", params={"model": "tiny", "space": "density", "sparsity": "0.5"})
    assert page.status_code == 200
    assert "64 of 64 channels, density 0.5" in page.text
    assert "<td>64 of 64, density 0.5</td>" in page.text  # the same as a table
    assert "of 4 some weights zeroed" in page.text
    assert "</span> zeroed; a column a layer" in page.text
    assert "Zeroed, which makes nothing smaller or faster: 50.0% of ffn" in page.text
    assert json.loads(block(page.text, "JSON of the plan"))["target"]["space"] == ["density"]
    assert client.get("/explorer/curve?model=tiny&space=density").status_code == 200


def test_the_snippets_make_the_same_plan(client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = client.get(
        "/explorer?model=tiny&ask=budget&memory_mib=4.5&latency_ms=5&device=l4&batch=2&method=uniform"
    ).text
    plan = json.loads(block(text, "JSON of the plan"))
    assert plan["target"]["budget"]["memory_bytes"] == round(4.5 * 2**20)
    words = shlex.split(block(text, "curl").replace("\\\n", " "))
    assert words[:4] == ["curl", "-X", "POST", "http://testserver/v1/plans"]
    headers = dict(word.split(": ", 1) for flag, word in itertools.pairwise(words) if flag == "-H")
    assert client.post("/v1/plans", content=words[-1], headers=headers).json() == plan

    app = AppTransport(client.app)  # type: ignore[arg-type]
    monkeypatch.setattr(lop, "Client", lambda url: lop.client.Client(url, transport=app))
    exec(block(text, "Python"))  # noqa: S102
    made = json.loads(capsys.readouterr().out)
    assert made["plan_id"] == plan["plan_id"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sparsity=much", "sparsity is a number"),
        ("sparsity=nan", "sparsity is a number"),
        ("sparsity=1.5", "sparsity: Input should be less than 1"),
        ("sparsity=0.9999", "Show the nearest target that can be met"),
        ("ask=budget&memory_mib=0.001&device=l4", "Show the nearest target that can be met"),
        ("ask=budget", "ask for a sparsity, for a budget, or name a device"),
        ("ask=budget&latency_ms=3", "latency_ms is a device&#39;s"),
        ("ask=budget&memory_mib=1&batch=1.5", "batch is a whole number"),
        ("model=%3Cscript%3E", "no model is stored under this id"),
        ("device=toaster", "the device must be in the catalogue"),
        ("space=everything", "space: Input should be"),
        ("method=flap", "flap"),
        ("space=density&ask=budget&memory_mib=100", "no budget asks for them"),
        ("space=density&sparsity=0.5&scope=model", "leave scope out"),
        ("space=density&sparsity=0.9", "Show the nearest target that can be met"),
    ],
)
def test_what_cannot_be_made_is_told_with_its_remedy(client: TestClient, query: str, words: str) -> None:
    answer = client.get(f"/explorer?{query}")
    assert answer.status_code in (404, 422)
    assert words in answer.text
    assert 'role="alert"' in answer.text
    assert client.get(f"/explorer?{query}", headers={"HX-Request": "true"}).status_code == 200
    if "nearest" in words:
        [link] = [x["href"] for x in Document(answer.text).all("a") if x["href"].startswith("/explorer?")]
        assert client.get(link).status_code == 200


def test_the_curve_has_a_line_a_method_and_the_plan_on_it(client: TestClient, known: None) -> None:
    plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "evolution"}).json()
    text = client.get(f"/explorer/curve?model=tiny&space=ffn&plan={plan['plan_id']}").text
    assert "evolution" in text
    assert "Without a prediction:" in text
    assert 'class="mark"' in text
    assert client.get("/explorer/curve?model=nope").status_code == 404
    assert client.get("/explorer/curve?model=tiny&space=nope").status_code == 422
    assert client.get("/explorer/curve?model=tiny&plan=nope").status_code == 404


def test_jobs_are_listed_filtered_and_watched(client: TestClient, repository: Repository, job: str) -> None:
    for _ in range(30):
        repository.add_job(NewJob("train", "tiny", {"kind": "train", "model": "tiny"}, "somebody"))
    listed = client.get("/jobs").text
    assert 'hx-trigger="every 3s"' in listed
    assert "1 to 25 of 31" in listed
    assert job[:12] in client.get("/jobs?offset=25").text
    assert job[:12] in client.get("/jobs?status=running&kind=search&model=tiny").text
    assert "No job matches" in client.get("/jobs?status=done").text
    shown = client.get(f"/jobs/{job}").text
    assert "INFO &lt;3&gt;" in shown
    assert 'hx-trigger="every 2s"' in shown
    [line] = Document(shown).all("polyline")
    heights = [float(point.split(",")[1]) for point in line["points"].split()]
    assert heights[0] < heights[1] == heights[2]  # better is lower, and the picture's y points down
    assert client.get("/jobs/nope").status_code == 404


def test_a_long_search_is_drawn_to_its_end(client: TestClient, repository: Repository) -> None:
    """More events than anybody wants to read, or to draw."""
    settings = {"kind": "search", "model": "tiny", "dataset": "d" * 64, "sparsities": [0.3]}
    asked, _ = repository.add_job(NewJob("search", "tiny", settings, "loopback"))
    repository.claim_job("w", stale_after=timedelta(hours=1))
    for done in range(100, 10_001, 100):
        repository.report_job(
            asked.id, "w", progress=JobProgress(done, 10_000, "sparsity 0.3", 1 / done), as_event=True, log=["x"] * 60
        )
    assert repository.list_job_events(asked.id, after=6000)
    [line] = document(client, f"/jobs/{asked.id}").all("polyline")
    spots = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert len(spots) == 60
    assert spots == sorted(spots)
    assert spots[-1][0] == WIDTH - 14  # the right end of the picture


def test_a_job_is_cancelled_and_queued_again_by_forms(client: TestClient, repository: Repository, job: str) -> None:
    page = document(client, f"/jobs/{job}")
    [form] = [x for x in page.all("form") if x["action"].endswith("/cancel")]
    token = next(x["value"] for x in page.all("input") if x["name"] == "csrf")
    answer = client.post(form["action"], data={"csrf": token}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job}")
    assert "cancelling" in client.get(f"/jobs/{job}").text
    repository.finish_job(job, "w", cancelled=True)
    page = document(client, f"/jobs/{job}")
    [form] = [x for x in page.all("form") if x["action"].endswith("/retry")]
    assert client.post(form["action"], data={"csrf": token}).status_code == 200
    assert repository.get_job(job).status is JobStatus.QUEUED
    conflict = client.post(f"/jobs/{job}/retry", data={"csrf": token})
    assert (conflict.status_code, conflict.headers["content-type"]) == (409, "text/html; charset=utf-8")


def test_two_plans_side_by_side(client: TestClient, known: None) -> None:
    ids = [
        client.post("/v1/plans", json={"model": "tiny", **more}).json()["plan_id"]
        for more in ({"sparsity": 0.2}, {"sparsity": 0.5, "device": "l4"})
    ]
    text = client.get(f"/compare?left={ids[0]}&right={ids[1]}").text
    assert text.count('<svg class="kept"') == 2
    assert "Right of left" in text
    one = client.get(f"/compare?left={ids[0]}").text
    assert f"against={ids[0]}" in one
    explored = client.get(f"/explorer?model=tiny&sparsity=0.3&against={ids[0]}").text
    assert f"/compare?left={ids[0]}&amp;right=" in explored
    missing = client.get("/compare?left=nope")
    assert (missing.status_code, "no plan is stored" in missing.text) == (404, True)


def test_a_plan_has_a_page_that_stays(client: TestClient, known: None) -> None:
    explored = client.get("/explorer?model=tiny&sparsity=0.3").text
    [path] = set(re.findall(r'href="(/plans/[^"]+)"', explored))
    text = client.get(path).text
    plan_id = path.rpartition("/")[2]
    assert text.count('<svg class="kept"') == 1
    assert f"http://testserver/v1/plans/{plan_id}" in text
    assert f"get_plan(&#39;{plan_id}&#39;)" in text
    assert f"/compare?left={plan_id}" in text
    missing = client.get("/plans/nope")
    assert (missing.status_code, "no plan is stored" in missing.text) == (404, True)


def test_the_explorer_takes_every_limit_and_refuses_what_it_does_not_know(client: TestClient, known: None) -> None:
    whole = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.0}).json()["achieved"]
    limit = whole["disk_bytes"] * 9 // 10
    page = document(client, f"/explorer?model=tiny&disk_bytes={limit}")
    assert {"name": "disk_bytes", "type": "hidden", "value": str(limit)} in page.all("input")
    curl = client.get(f"/explorer?model=tiny&disk_bytes={limit}").text
    assert f"&#34;budget&#34;: {{&#34;disk_bytes&#34;: {limit}}}" in curl
    nearest = client.get("/explorer?model=tiny&flops=5")
    assert nearest.status_code == 422
    assert re.search(r"flops=[1-9]\d+", nearest.text)
    for query, told in (
        ("disk_byte=5", "no such field"),
        ("gguf_bytes=9000000000&gguf_type=q9", "gguf_type"),
        ("after_recovery=maybe&sparsity=0.3", "true or false"),
    ):
        answer = client.get(f"/explorer?model=tiny&{query}")
        assert (answer.status_code, told in answer.text) == (422, True), query


def test_devices(client: TestClient) -> None:
    assert "NVIDIA L4" in client.get("/devices").text
    assert "300 GB" not in client.get("/devices/l4").text
    assert client.get("/devices/toaster").status_code == 404


def test_a_database_that_is_gone_is_a_page_that_says_when_to_come_back(settings: Settings) -> None:
    away = AwayRepository(StorageUnavailableError("the database must answer", remedy="Start it"))
    with TestClient(create_app(settings, repository=away)) as client:  # type: ignore[arg-type]
        for path in ("/", "/explorer", "/jobs"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
            assert "Start it" in answer.text


def test_a_plan_that_cannot_be_stored_is_a_page_that_says_when_to_come_back(
    settings: Settings, repository: Repository, known: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: everything can be read, and nothing written."""

    def refuse(record: object) -> None:
        raise StorageUnavailableError("the database file must be writable", remedy="Check the free disk space")

    monkeypatch.setattr(repository, "add_plan", refuse)
    with TestClient(create_app(settings, repository=repository)) as client:
        answer = client.get("/explorer?model=tiny&sparsity=0.33")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "free disk space" in answer.text


def test_behind_a_prefix_every_address_has_it(database_url: str, repository: Repository, known: None, job: str) -> None:
    with TestClient(create_app(Settings(database_url=database_url, root_path="/lop"))) as client:
        for path in (*PAGES, f"/jobs/{job}"):
            page = document(client, path)
            addresses = [x[name] for _, x in page.elements for name in ("href", "src", "action", "hx-get") if name in x]
            assert addresses
            assert all(address.startswith(("/lop/", "#")) for address in addresses), path
    link = urlsplit(next(x["href"] for x in page.all("a") if "/explorer" in x["href"]))
    assert dict(parse_qsl(link.query)) == {}


@pytest.mark.parametrize("host", ["[::1", "a b", "x:99999999", '"><script>', ""])
def test_a_host_that_is_none_does_no_harm(settings: Settings, repository: Repository, known: None, host: str) -> None:
    """With keys, and without names that are set, any is taken."""
    record, key = new_key("notebook", KeyScope.ADMIN)
    repository.add_key(record)
    client = TestClient(create_app(settings.model_copy(update={"allowed_hosts": ""})))
    client.headers["Authorization"] = f"Bearer {key}"
    for path in ("/", "/explorer?model=tiny", "/explorer?model=nope", "/nowhere", "/v1/models/nope", "/v1/plans/nope"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code in (200, 404), (path, answer.text)
        assert "<script>" not in answer.text
    refused = client.post("/v1/jobs", content=b"", headers={"Host": host})
    assert refused.status_code == 415


ODD = ("%00", "%ff", "%ed%a0%80", "'--", "x" * 5000, "%F0%9F%98%80", "../..")


@pytest.mark.parametrize(
    "path",
    [
        "/explorer?model=",
        "/explorer?device=",
        "/explorer?sparsity=",
        "/explorer/curve?model=tiny&plan=",
        "/jobs?model=",
        "/jobs?status=",
        "/jobs?offset=",
        "/jobs/",
        "/compare?left=",
        "/plans/",
        "/devices/",
        "/devices?limit=",
        "/login?next=",
    ],
)
def test_odd_values_are_refused_or_ignored(client: TestClient, path: str) -> None:
    for value in ODD:
        assert client.get(path + value).status_code < 500, value


def test_a_page_is_no_part_of_the_api(client: TestClient) -> None:
    assert all(path.startswith(("/v1/", "/healthz", "/readyz")) for path in client.get("/openapi.json").json()["paths"])
    assert client.get("/nowhere").headers["content-type"] == "application/problem+json"
