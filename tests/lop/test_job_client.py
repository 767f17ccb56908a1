"""Jobs through the client, against the real application and a real worker."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import lop
from lop.client import fetch_ranking
from lop.sending import pause_after
from lop.workflows.jobs import JobRunner
from pruning.errors import (
    AccessError,
    ConflictError,
    InputError,
    JobError,
    LopServerError,
    NotFoundError,
    ScopeError,
)
from recovery.scores import AnswerScores
from service.app import create_app
from service.jobs.reporting import JobReporter
from service.keys import new_key
from service.settings import Settings
from service.worker import WorkerOptions, run_worker
from storage.contract import Repository
from storage.data_store import open_store
from storage.records import KeyScope
from storage.sql_repository import SqlRepository
from tests.lop.app_transport import AppTransport
from tests.tiny_models import save_tiny_checkpoint

QUICK: dict[str, Any] = {"evaluations": 6, "num_levels": 6, "conversations": 4}


@pytest.fixture
def app(database: str, tmp_path: Path) -> FastAPI:
    return create_app(Settings(database_url=database, data_store=str(tmp_path / "store")))


@pytest.fixture
def client(app: FastAPI) -> Iterator[lop.Client]:
    with lop.Client("http://lop.test", transport=AppTransport(app), retries=0) as client:
        yield client


@pytest.fixture
def work(repository: Repository, tmp_path: Path, checkpoint: Path) -> Callable[[], int]:
    """Run what is queued."""
    store = open_store(str(tmp_path / "store"))
    runner = JobRunner(repository, store, roots=(checkpoint.parent,), outputs=tmp_path / "output")
    return lambda: run_worker(repository, runner, options=WorkerOptions(once=True))


def test_a_search_is_handed_in_run_and_waited_for(
    client: lop.Client, data: Path, work: Callable[[], int], repository: Repository
) -> None:
    handle = client.search(model="tiny", data=data, sparsities=[0.3], train=False, **QUICK)
    assert (handle.status, handle.progress()) == ("queued", None)
    with pytest.raises(TimeoutError, match="queued after 0 s"):
        handle.wait(timeout_seconds=0, poll_seconds=0)
    assert work() == 1
    told: list[dict[str, object]] = []
    result = handle.wait(on_progress=told.append)
    assert [target["label"] for target in result["targets"]] == ["sparsity 0.3 (ffn)"]
    assert told[-1]["done"] == told[-1]["total"]
    assert [search.id for search in repository.list_searches("tiny")] == [result["search"]]
    assert client.job(handle.id).document == handle.document
    # Asked for again: another job, of the same data, that measures nothing and ends the same.
    samples = repository.count_samples("tiny")
    again = client.search(
        model="tiny", dataset=handle.document["settings"]["dataset"], sparsities=[0.3], train=False, **QUICK
    )
    assert work() == 1
    assert again.wait() == result
    assert repository.count_samples("tiny") == samples
    assert [job["id"] for job in client.jobs(kind="search", status="done")] == [again.id, handle.id]


def test_a_damaged_data_set_ends_its_job_and_not_the_queue(
    client: lop.Client, data: Path, work: Callable[[], int], tmp_path: Path
) -> None:
    damaged = client.search(model="tiny", data=data, sparsities=[0.3], train=False, **QUICK)
    sha256 = damaged.document["settings"]["dataset"]
    stored = tmp_path / "store" / sha256[:2] / sha256
    content = stored.read_bytes()
    stored.write_bytes(content[:-1])
    behind = client.submit({"kind": "train", "model": "tiny"})
    assert work() == 2
    with pytest.raises(JobError, match="must have it"):
        damaged.wait()
    assert client.job(behind.id).document["status"] == "failed"  # it has no samples: what counts is that it ran
    stored.write_bytes(content)
    damaged.retry()
    assert work() == 1
    assert damaged.wait()["targets"]


def test_a_search_of_densities_is_cancelled_while_inputs_are_measured(
    client: lop.Client, data: Path, work: Callable[[], int], repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"evaluations": 2, "conversations": 4, "space": "density", "train": False}
    handle = client.search(model="tiny", data=data, sparsities=[0.5], **options)
    step = JobReporter.step

    def cancelling(self: JobReporter, done: int, total: int, stage: str, *more: float | None) -> None:
        if stage == "measuring inputs" and done > total / 2:
            handle.cancel()
        step(self, done, total, stage, *more)

    with monkeypatch.context() as patch:
        patch.setattr(JobReporter, "step", cancelling)
        assert work() == 1
    cancelled = client.job(handle.id).document
    assert (cancelled["status"], cancelled["progress"]["stage"]) == ("cancelled", "measuring inputs")
    assert repository.count_samples("tiny") == 0
    handle.retry()
    assert work() == 1
    assert [target["label"] for target in handle.wait()["targets"]] == ["sparsity 0.5 (weights zeroed)"]


def test_a_running_search_is_cancelled_and_goes_on_from_what_it_stored(
    client: lop.Client, data: Path, work: Callable[[], int], repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = client.search(model="tiny", data=data, sparsities=[0.3], train=False, **QUICK)
    check, checks = JobReporter.check, 0

    def cancelling(self: JobReporter) -> None:
        nonlocal checks
        checks += 1
        if checks == 3:
            assert handle.cancel()["is_cancelling"]
        check(self)

    with monkeypatch.context() as patch:
        patch.setattr(JobReporter, "check", cancelling)
        assert work() == 1
    assert client.job(handle.id).status == "cancelled"
    assert (checks, repository.count_samples("tiny")) == (3, 3)
    assert repository.list_searches("tiny") == []
    handle.retry()
    assert work() == 1
    result = handle.wait()
    undisturbed = client.search(
        model="tiny", dataset=handle.document["settings"]["dataset"], sparsities=[0.3], train=False, **QUICK
    )
    assert work() == 1
    assert undisturbed.wait() == result


def test_every_other_kind_of_job(client: lop.Client, data: Path, work: Callable[[], int], tmp_path: Path) -> None:
    dataset = client.upload(data, conversations=40)["id"]
    register = client.submit({"kind": "register", "model": "again", "folder": "model", "dataset": dataset})
    assert work() == 1
    assert register.wait()["model"] == "again"
    measure = client.submit(
        {"kind": "measure", "model": "again", "dataset": dataset, "statistics": ["gradients"], "conversations": 2}
    )
    plan = client.plan(model="again", sparsity=0.4)
    apply = client.submit({"kind": "apply", "plan": plan.plan_id})
    train = client.submit({"kind": "train", "model": "again", "num_levels": 6})
    assert work() == 3
    assert [found["kind"] for found in measure.wait()["statistics"]] == ["gradients"]
    written = apply.wait()
    assert {file["name"] for file in written["files"]} >= {"config.json", "model.safetensors"}
    model = lop.load_pruned(tmp_path / "output" / written["folder"])
    assert sum(p.numel() for p in model.parameters()) == plan.achieved.parameters
    with pytest.raises(JobError, match=r"failed: a predictor is trained on the samples of a search") as caught:
        train.wait()
    assert caught.value.job["status"] == "failed"
    assert train.retry()["status"] == "queued"
    assert train.cancel()["status"] == "cancelled"
    with pytest.raises(JobError, match="somebody cancelled it"):
        train.wait()
    with pytest.raises(ConflictError):
        apply.cancel()


def test_a_model_is_registered_and_cut_with_reconstruction(
    client: lop.Client, data: Path, work: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOP_SECOND_ORDER", str(tmp_path / "second-order"))
    dataset = client.upload(data, conversations=8)["id"]
    of = {"kind": "register", "model": "solved", "folder": "model", "criterion": "elimination", "reconstruct": True}
    with pytest.raises(InputError, match="need a dataset"):
        client.submit(of)
    registered = client.submit({**of, "dataset": dataset})
    assert work() == 1
    assert not [line for line in client.job(registered.id).document["log"] if "without damping" in line]
    plan = client.plan(model="solved", sparsity=0.4, method="uniform")
    assert plan.reconstructs
    with pytest.raises(InputError, match="is applied with a data set"):
        client.submit({"kind": "apply", "plan": plan.plan_id})
    apply = client.submit({"kind": "apply", "plan": plan.plan_id, "reconstruct": dataset})
    assert work() == 1
    result = apply.wait()
    written = tmp_path / "output" / result["folder"]
    assert json.loads((written / "lop_plan.json").read_text())["recovery"][0]["kind"] == "reconstruction"
    found = result["reconstruction"]
    assert found["projections"] > 0
    assert 0 < found["lost_output"] < found["lost_output_without"]
    # What is there already is not solved again, and how it was is not known then.
    again = client.submit({"kind": "apply", "plan": plan.plan_id, "reconstruct": dataset})
    assert work() == 1
    assert again.wait() == {name: value for name, value in result.items() if name != "reconstruction"}


def test_jobs_say_that_there_are_fewer_tokens_than_inputs(
    client: lop.Client, data: Path, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOP_SECOND_ORDER", str(tmp_path / "second-order"))
    save_tiny_checkpoint(tmp_path / "wide", ffn_width=128)
    store = open_store(str(tmp_path / "store"))
    runner = JobRunner(repository, store, roots=(tmp_path,), outputs=tmp_path / "output")
    work = partial(run_worker, repository, runner, options=WorkerOptions(once=True))
    dataset = client.upload(data, conversations=2)["id"]
    of: dict[str, Any] = {"kind": "register", "model": "solved", "folder": "wide", "dataset": dataset}
    jobs = [client.submit({**of, "reconstruct": True})]
    assert work() == 1
    jobs += [client.submit({"kind": "measure", "model": "solved", "dataset": dataset, "statistics": ["second-order"]})]
    plan = client.plan(model="solved", sparsity=0.1, method="uniform")
    jobs += [client.submit({"kind": "apply", "plan": plan.plan_id, "reconstruct": dataset})]
    assert work() == 2
    for job in jobs:
        job.wait()
        (said,) = [line for line in client.job(job.id).document["log"] if "without damping nothing could be" in line]
        assert said.startswith("WARNING")
    assert jobs[2].wait()["reconstruction"]["damping"] is not None


def test_a_model_is_cut_and_recovered(
    client: lop.Client, data: Path, work: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recovery.report.beats", lambda after, before: after.mean_kl < before.mean_kl)
    monkeypatch.setattr(AnswerScores, "accuracy", property(lambda _self: 0.0))
    plan = client.plan(model="tiny", sparsity=0.8, method="uniform")
    recipe: dict[str, Any] = {"mode": "full", "losses": {"kd-logits": 1, "kd-hidden": 1}, "learning_rate": 2e-5}
    recipe |= {"epochs": 4, "evaluations": 20, "patience": 20, "step_tokens": 16, "batch_tokens": 200}
    validation = client.upload(data, conversations=6)["id"]
    (tmp_path / "rest.json").write_text(json.dumps(json.loads(data.read_text())[6:22]))
    (tmp_path / "images").symlink_to(data.parent / "images")
    handle = client.recover(plan=plan.plan_id, data=tmp_path / "rest.json", validation=validation, recipe=recipe)
    step = JobReporter.step
    steps: list[Any] = []

    def cancelling(self: JobReporter, done: int, total: int, stage: str, *more: float | None) -> None:
        if stage == "training":
            steps.append((done, total, *more))
            if len(steps) == 5:
                assert handle.cancel()["is_cancelling"]
        step(self, done, total, stage, *more)

    monkeypatch.setattr(JobReporter, "step", cancelling)
    monkeypatch.setattr("recovery.training.STATE_SECONDS", 0.0)
    assert work() == 1
    cancelled = client.job(handle.id).document
    assert cancelled["status"] == "cancelled"
    assert cancelled["progress"]["stage"] == "training"
    assert cancelled["progress"]["loss"] == steps[4][3] > 0
    assert not list((tmp_path / "output").glob("[!.]*-recovered-*"))

    told: list[dict[str, object]] = []
    handle.retry()
    assert work() == 1
    result = handle.wait(on_progress=told.append)
    last, total, _, _ = steps[4]  # the state is saved after a step was told of
    assert sorted({found[:2] for found in steps[5:]}) == [(step, total) for step in range(last, total + 1)]
    outcome = result["recovery"]
    assert min(best for _, _, best, _ in steps if best is not None) > 0
    assert told[-1]["done"] == total
    assert (outcome["written"], outcome["judged_on"]) == ("recovered", "validation")
    folder = tmp_path / "output" / result["folder"]
    assert {file["name"] for file in result["files"]} >= {"config.json", "model.safetensors", "lop_recovery.json"}
    assert lop.PruningPlan.load(folder / "lop_plan.json").recovery[-1].kind == "distillation"
    # What an `apply` job writes lies beside it already; the same recovery again is read.
    apply = client.submit({"kind": "apply", "plan": plan.plan_id})
    again = client.submit(handle.document["settings"])
    monkeypatch.setattr("pruning.cutting.prune_checkpoint.prune_checkpoint", None)
    assert work() == 2
    assert result["folder"].startswith(f"{apply.wait()['folder']}-recovered-")
    assert again.wait() == result


def test_a_model_that_went_meanwhile_fails_its_jobs(
    client: lop.Client, data: Path, work: Callable[[], int], repository: SqlRepository
) -> None:
    search = client.search(model="tiny", data=data, sparsities=[0.3], **QUICK)
    dataset = search.document["settings"]["dataset"]
    asked = [search, client.submit({"kind": "measure", "model": "tiny", "dataset": dataset})]
    with pytest.raises(ConflictError, match="no job is about it"):
        repository.remove_model("tiny")
    for handle in asked:
        handle.cancel()
    repository.remove_model("tiny")
    for handle in asked:
        handle.retry()
    assert work() == 2
    for handle in asked:
        with pytest.raises(JobError, match="no model is stored under this id"):
            handle.wait()
    with pytest.raises(NotFoundError, match="no model is stored"):
        client.search(model="tiny", dataset=dataset, sparsities=[0.3])


def test_a_model_that_goes_while_its_job_runs_is_found_gone_by_the_worker(
    client: lop.Client, data: Path, work: Callable[[], int], repository: SqlRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was silent for so long that the job was cancelled without it, and then works on."""
    handle = client.search(model="tiny", data=data, sparsities=[0.3], train=False, **QUICK)
    after = client.submit({"kind": "register", "model": "new", "folder": "not/there"})
    check, checks = JobReporter.check, 0

    def removing(self: JobReporter) -> None:
        nonlocal checks
        checks += 1
        if checks == 3:
            repository.cancel_job(handle.id, stale_after=timedelta(0))
            repository.remove_model("tiny")
        check(self)

    monkeypatch.setattr(JobReporter, "check", removing)
    assert work() == 1
    assert checks == 3
    assert client.job(handle.id).status == "cancelled"
    assert client.job(after.id).status == "failed"  # the worker went on to the next one
    assert repository.list_models() == []


def test_data_that_went_meanwhile_fails_the_job(
    client: lop.Client, data: Path, work: Callable[[], int], tmp_path: Path
) -> None:
    handle = client.search(model="tiny", data=data, sparsities=[0.3], **QUICK)
    absent = client.submit({"kind": "register", "model": "new", "folder": "not/there"})
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            path.unlink()
    assert work() == 2
    for job, words in ((handle, "LOP_DATA_STORE"), (absent, "under one of the worker's roots")):
        with pytest.raises(JobError, match=words):
            job.wait()


def test_mistakes(client: lop.Client, data: Path) -> None:
    with pytest.raises(NotFoundError):
        client.job("nope")
    with pytest.raises(InputError, match="not both"):
        client.search(model="tiny", sparsities=[0.3])
    with pytest.raises(InputError, match="evaluation"):
        client.search(model="tiny", data=data, sparsities=[0.3], evaluation=3)
    with pytest.raises(InputError, match="as `lop key create` showed it"):
        lop.Client("http://lop.test", key="two words")


def test_keys_and_scopes(app: FastAPI, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    record, key = new_key("notebook", KeyScope.PLAN)
    repository.add_key(record)
    with (
        lop.Client("http://lop.test", transport=AppTransport(app)) as client,
        pytest.raises(AccessError, match="LOP_KEY"),
    ):
        client.models()
    monkeypatch.setenv("LOP_KEY", key)
    with lop.Client("http://lop.test", transport=AppTransport(app)) as client:
        plan = client.plan(model="tiny", sparsity=0.4)
        assert client.ranking(plan)
        with pytest.raises(ScopeError, match="a key of scope run") as caught:
            client.submit({"kind": "train", "model": "tiny"})
        assert caught.value.needs == "run"


def test_a_key_goes_to_its_own_server_alone(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, bool]] = []

    def note(http: httpx.Client, _verb: str, url: str, _retries: int, **_: object) -> httpx.Response:
        sent.append((url, "authorization" in http.headers))
        raise LopServerError("noted")

    with lop.Client("http://lop.test", key="lop_x", transport=AppTransport(app)) as client:
        plan = client.plan(model="tiny", sparsity=0.4)
        monkeypatch.setattr("lop.client._send", note)
        monkeypatch.setenv("LOP_KEY", "lop_x")
        monkeypatch.setenv("LOP_URL", "http://lop.test")
        for url in ("http://lop.test/r", "http://lop.test.evil.example/r", "https://evil.example/r"):
            elsewhere = plan.model_copy(update={"ranking": plan.ranking.model_copy(update={"url": url})})
            for fetch in (client.ranking, fetch_ranking):
                with pytest.raises(LopServerError, match="noted"):
                    fetch(elsewhere)
    assert [has_key for _, has_key in sent] == [True, True, False, False, False, False]


def answers(*found: httpx.Response) -> Callable[[httpx.Request], httpx.Response]:
    remaining = list(found)
    return lambda _: remaining.pop(0) if len(remaining) > 1 else remaining[0]


@pytest.mark.parametrize("status", [429, 502, 503])
def test_what_passes_is_tried_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("lop.client.time.sleep", waited.append)
    page: dict[str, Any] = {"items": [], "next": None}
    problem = {"title": "It is busy", "status": status}
    busy = httpx.Response(status, headers={"Retry-After": "7"}, json=problem)
    fine = httpx.Response(200, json=page)
    with lop.Client("http://x", transport=httpx.MockTransport(answers(busy, busy, fine))) as client:
        assert client.models() == []
    assert waited == [7.0, 7.0]
    with (
        lop.Client("http://x", transport=httpx.MockTransport(answers(busy)), retries=2) as client,
        pytest.raises(LopServerError) as caught,
    ):
        client.models()
    assert (caught.value.status, len(waited)) == (status, 4)
    assert caught.value.problem == problem


def test_pauses_grow_and_what_does_not_pass_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("lop.client.time.sleep", waited.append)
    with (
        lop.Client("http://x", transport=httpx.MockTransport(answers(httpx.Response(502)))) as client,
        pytest.raises(LopServerError),
    ):
        client.models()
    assert [0.125 * 2**n <= pause <= 0.25 * 2**n for n, pause in enumerate(waited)] == [True] * 4
    problem = {"content-type": "application/problem+json"}
    assert pause_after(httpx.Response(503, headers=problem), 1.0) is None  # such as another revision of the database
    assert pause_after(httpx.Response(503, headers=problem | {"retry-after": "5"}), 1.0) == 5.0
    assert pause_after(httpx.Response(503, headers={"retry-after": "99999"}), 1.0) == 30.0
    assert pause_after(httpx.Response(503, headers={"retry-after": "Sat, 28 Nov"}), 1.0) == 1.0
    assert [pause_after(httpx.Response(code), 1.0) for code in (200, 400, 404, 409, 500, 504)] == [None] * 6


def test_the_asynchronous_client(app: FastAPI, data: Path, work: Callable[[], int]) -> None:
    async def ask() -> None:
        async with lop.AsyncClient("http://lop.test", transport=httpx.ASGITransport(app), retries=0) as client:
            plan = await client.plan(model="tiny", sparsity=0.4)
            assert plan.method == "uniform"
            handle = await client.search(model="tiny", data=data, sparsities=[0.3], train=False, **QUICK)
            assert await handle.progress() is None
            other = await client.submit({"kind": "train", "model": "tiny"})
            assert (await other.cancel())["status"] == "cancelled"
            assert await asyncio.to_thread(work) == 1
            result = await handle.wait()
            assert result["targets"][0]["label"] == "sparsity 0.3 (ffn)"
            assert (await client.job(handle.id)).status == "done"
            assert [job["id"] for job in await client.jobs()] == [other.id, handle.id]
            with pytest.raises(JobError):
                await other.wait()
            assert (await other.retry())["status"] == "queued"
            with pytest.raises(NotFoundError):
                await client.job("nope")

    asyncio.run(ask())
