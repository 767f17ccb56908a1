"""Searched densities, the part `densities` of `benchmarks.second_order`: against ECoFLaP's ratios, by both local steps.

A search in the space `density` chooses the densities of the decoder's sub-layers, on calibration data alone, and by
Wanda. Only the ratios differ: both folders are what `lop sparsify` writes by one method, layer after layer by the
inputs that it will have, and both are of the decoder. Of a model of which ECoFLaP's rows are of its vision tower, too,
there are rows of ECoFLaP on its decoder alone.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

from benchmarks.measured_code import AT_START
from benchmarks.second_order_data import beginnings
from benchmarks.second_order_ecoflap import SEED, SPARSITIES, Case, SparseModel, case_row, ecoflap_scores, row_key
from benchmarks.steps import Steps
from lop.workflows.registration import register_model
from lop.workflows.searching import search_model
from lop.workflows.sparsifying import Ratios, planned_sparsity
from mcts.settings import SearchSettings
from pruning.anatomy.architecture import Architecture
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.rewriting.sparsifier import LocalStep
from pruning.cutting.rewriting.sparsify_checkpoint import Modules
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget
from pruning.planning.scope import Scope
from storage.sql_repository import open_repository

SEARCHED = "searched"

EVALUATIONS = {"reference": 100, "smollm2": 48}
"""Of each sparsity; the scan, which all share, has 150 more at most."""

NUM_SCORED = {"reference": 128, "smollm2": 24}
"""Calibration conversations that a search scores on, at most, of each answer as much as validation has."""

_SEARCH = ("lop.workflows.searching",)
_CODE = ("benchmarks.second_order_densities",)


def searched_rows(
    model: SparseModel,
    key: Sequence[str],
    steps: Steps,
    sparsities: Sequence[float] = SPARSITIES,
    evaluations: int | None = None,
) -> list[dict[str, Any]]:
    """Rows of the searched ratios, and of ECoFLaP's where the model has none of its decoder alone."""
    number = evaluations or EVALUATIONS[model.name]
    decoder = replace(model, modules=Modules.LANGUAGE)
    rows = []
    for sparsity in sparsities:
        asked = [*key, str(number), str(NUM_SCORED[model.name]), str(sparsity)]
        search = partial(_search, model, sparsity, number)
        found = steps.call(f"searched densities {sparsity}", asked, search, modules=_CODE).document
        own = [*row_key(model, asked), str(found["architecture"])]
        for by in LocalStep:
            score = partial(_score, decoder, sparsity, found["architecture"], by)
            step = steps.call(f"{by} {SEARCHED} {sparsity}", own, score, modules=_CODE)
            rows.append({**step.document, "seconds": step.seconds, "calibration_kl": found["calibration_kl"]})
    if model.modules is not Modules.LANGUAGE:
        scores = ecoflap_scores(model, key, steps)  # the decoder's are among them
        cases = [Case(by, Ratios.ECOFLAP, sparsity) for sparsity in sparsities for by in LocalStep]
        rows += [case_row(decoder, case, scores, key, steps) for case in cases]
    return rows


def _search(model: SparseModel, sparsity: float, evaluations: int) -> dict[str, Any]:
    """The best architecture. Killed, it goes on: samples are in a database beside the steps, those of the scan for all
    sparsities."""
    scored = beginnings(model.calibration[: NUM_SCORED[model.name]])
    settings = SearchSettings(
        sparsities=(sparsity,),
        scope=Scope.DECODER,
        axes=SpaceName.DENSITY,
        num_evaluations=evaluations,
        seed=SEED,
    )
    # Samples of other code would be taken for its own.
    code = AT_START.digests(AT_START.reached(_SEARCH))
    name = f"densities-{sha256(json.dumps(code).encode()).hexdigest()[:16]}.db"
    repository = open_repository(f"sqlite:///{model.folder / name}", create=True)
    if not any(x.id == model.name for x in repository.list_models()):
        register_model(repository, model.name, model.path, scored)
    result = search_model(repository, model.name, scored, settings, name="calibration")
    space = settings.space(repository.get_model(model.name).anatomy)
    (target,) = result.targets
    return {
        "architecture": space.architecture(target.choice).document(),
        "calibration_kl": target.metrics.kl,
        "scan_evaluations": result.scan_evaluations,
    }


def _score(model: SparseModel, sparsity: float, document: list[dict[str, Any]], step: LocalStep) -> dict[str, Any]:
    plan = make_plan(
        read_anatomy(model.path),
        Architecture.from_document(document),
        model_id=model.name,
        target=PlanTarget(sparsity=sparsity, scope=Scope.DECODER),
        ranking=PlanRanking(sha256="0" * 64),  # nothing is cut
        method="mcts",
    )
    asked, densities = planned_sparsity(model.path, plan, step)
    return model.measured(asked, densities, ratios=SEARCHED, sparsity=sparsity)
