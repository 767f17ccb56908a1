"""What the fuzzed server knows before the first request, so that requests get through to real work.

Next to no generated request would get past the search for a model, a plan or a data set of a random name, and next to
no random bytes are an archive.
"""

import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.service_subject import MODEL
from storage.contract import Repository
from storage.records import BINARY, NewJob, PredictorRecord
from tests.pruning.data.test_archives import tarred, zipped
from tests.pruning.data.test_packed_data import document as conversations
from tests.pruning.data.test_packed_data import item, picture
from tests.pruning.made_up_devices import made_up_profile
from tests.service.made_up import NOW, made_up_anatomy, register_model

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

DEVICE = "bench"
_OF_JOBS_AND_PLANS = {"kind", "model", "plan", "dataset", "folder", "sparsities"}
_OF_DEVICES = {"id", "name", "machine", "memory_bytes", "flops_per_s", "bandwidth_bytes_per_s"}
REQUIRED = _OF_JOBS_AND_PLANS | _OF_DEVICES
"""Fields of bodies that at least one kind of request needs."""
KNOWN = 0.8
"""A recovery gets through where two names or more are known at once."""
NUM_ARCHIVES = 40
"""Different ones that are whole: data sets are stored by their content, so there are never more of them."""
_DATASETS = 3
"""A recovery names up to three, all different."""
_PLANS: tuple[dict[str, Any], ...] = (
    {"model": MODEL, "sparsity": 0.3},
    {"model": MODEL, "sparsity": 0.3, "space": "layers"},
    {"model": MODEL, "budget": {"disk_bytes": 90_000}, "device": DEVICE},
)
_OF_MODELS, _OF_DATASETS = ("model", "model_id"), ("dataset", "dataset_id", "selection", "validation", "reconstruct")

_TARGETS = ("sparsity", "budget", "device")

Row = dict[str, Any]
Ids = dict[str, Sequence[str]]
"""What is known, by the name of the field or parameter that takes it."""


def add_jobs_and_predictors(repository: Repository) -> Ids:
    """What the API takes from nobody: a job of somebody, which has ended, so that its stream has, too, and a predictor.

    The predictor is of a model that no request names: its weights are none.
    """
    job, _ = repository.add_job(NewJob("train", MODEL, {"kind": "train", "model": MODEL}, "somebody"))
    repository.cancel_job(job.id, stale_after=timedelta(minutes=1))
    other = register_model(repository, "other")
    weights = repository.put_artifact(b"no weights", BINARY)
    predictor = repository.add_predictor(PredictorRecord("known", other.id, weights, {}, NOW))
    return {
        **dict.fromkeys(_OF_MODELS, (MODEL,)),
        "job_id": (job.id,),
        "predictor_id": (predictor.id,),
        "sha256": (other.ranking_sha256,),
    }


def add_over_http(client: httpx.Client) -> Ids:
    """A device, data sets and plans, by who may do all that."""
    profile = made_up_profile(DEVICE, anatomy=made_up_anatomy())
    headers = {"Content-Type": "application/json", "Accept": "application/vnd.lop.plan.v2+json"}
    client.post("/v1/devices", content=profile.model_dump_json(), headers=headers).raise_for_status()
    datasets = [
        _made(client.post("/v1/datasets", content=archive(number), headers={"Content-Type": "application/zip"}))["id"]
        for number in range(_DATASETS)
    ]
    plans = [_made(client.post("/v1/plans", json=asked, headers=headers))["plan_id"] for asked in _PLANS]
    devices = (DEVICE, "l4")
    return {
        **dict.fromkeys(_OF_DATASETS, datasets),
        **dict.fromkeys(("plan", "plan_id"), plans),
        **dict.fromkeys(("device", "device_id"), devices),
    }


def _made(answer: httpx.Response) -> Row:
    answer.raise_for_status()
    found: Row = answer.json()
    return found


def archive(number: int) -> bytes:
    """Archive `number` of `NUM_ARCHIVES`: a zip or a tar file of a conversation, with a picture or without one."""
    image = "1.png" if number % 4 < 2 else None
    files = [("data.json", conversations(item(f"answer {number}", image)))]
    if image is not None:
        files.append((image, picture()))
    return zipped(*files) if number % 2 else tarred(*files)


def archives() -> "SearchStrategy[bytes]":
    """Bodies that are archives, those that are cut short or have a byte changed, and those that are none."""
    from hypothesis import strategies as st

    whole = st.integers(0, NUM_ARCHIVES - 1).map(archive)
    place = st.integers(0, 5000)
    cut = st.builds(lambda content, end: content[: end % len(content)], whole, place)
    changed = st.builds(_changed, whole, place, st.integers(1, 255))
    return st.one_of(whole, whole, cut, changed, st.binary(max_size=200))


def _changed(content: bytes, place: int, by: int) -> bytes:
    place %= len(content)
    return content[:place] + bytes([content[place] ^ by]) + content[place + 1 :]


def name_known(case: Any, ids: Ids, rng: random.Random) -> None:
    """Let a generated request that is valid by its schema name what is known, each name with probability `KNOWN`.

    An `enum` beside each name's pattern in the document would not do: schemathesis leaves out what the pattern takes
    anyway. A path that a link has filled in stays as it is, and so does what is to be refused.
    """
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.meta.phase.name.value != "stateful":
        case.path_parameters = _named(case.path_parameters or {}, ids, rng)
    if case.query and "model" in case.query:
        case.query = _named(case.query, ids, rng)
    if isinstance(case.body, dict):
        case.body = _named(_with_target(thinned(case.body, rng), rng), ids, rng)


def thinned(body: Row, rng: random.Random) -> Row:
    """In half of all cases with fewer of the fields that may be left out: few bodies with all of them keep every rule
    across fields, such as that a plan is for a sparsity or for a budget."""
    if rng.random() < 0.5:
        return body
    return {name: value for name, value in body.items() if name in REQUIRED or rng.random() < 0.4}


def _with_target(body: Row, rng: random.Random) -> Row:
    """A request for a plan without any target is as good as never refused for anything else."""
    if "kind" in body or "model" not in body or any(body.get(name) is not None for name in _TARGETS):
        return body
    made: tuple[Row, ...] = (
        {"sparsity": rng.random()},
        {"sparsity": rng.random(), "device": DEVICE, "space": rng.choice(("ffn", "layers", "density"))},
        {"budget": {"memory_bytes": rng.randrange(2_200_000, 2_400_000)}},
        {"budget": {"latency_ms": rng.uniform(1, 500), "prompt_tokens": 15}, "device": DEVICE},
        {},
    )
    return {**body, **rng.choice(made)}


def _named(values: Mapping[str, Any], ids: Ids, rng: random.Random) -> Row:
    # `reconstruct` is a data set in one body and a switch in another, which stays one.
    found: Row = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found[name] = _named(value, ids, rng)
        elif name in ids and (value is None or isinstance(value, str)) and rng.random() < KNOWN:
            found[name] = rng.choice(ids[name])
        else:
            found[name] = value
    return found
