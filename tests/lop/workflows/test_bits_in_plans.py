"""Bits as options: searched, planned under a budget that binds, applied, and as large as it says."""

from pathlib import Path

import pytest

from lop.workflows.registration import read_conversations, register_model
from lop.workflows.searching import search_model
from mcts.settings import SearchMethod, SearchSettings
from pruning.allocators.methods import Method
from pruning.anatomy.architecture import DENSE
from pruning.anatomy.gguf_types import TensorType
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.cost import achieved_costs
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from service.sensitivity_scan import ScanFinder
from storage.contract import Repository
from storage.records import ModelRecord
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint, write_conversations

pytest.importorskip("compressed_tensors")


def test_from_the_search_to_the_folder(tmp_path: Path) -> None:
    repository = open_repository(f"sqlite:///{tmp_path / 'lop.db'}", create=True)
    folder = save_tiny_checkpoint(tmp_path / "model", ffn_width=64)
    conversations = read_conversations(write_conversations(tmp_path / "calibration"))[0][:4]
    register_model(repository, "tiny", folder, conversations)
    for space in (SpaceName.BITS, SpaceName.ALL_BITS):
        for method in SearchMethod if space is SpaceName.BITS else (SearchMethod.MCTS,):
            settings = SearchSettings(
                sparsities=(0.6,), scope=Scope.DECODER, axes=space, num_evaluations=6, num_levels=2, method=method
            )
            found = search_model(repository, "tiny", conversations, settings, name="calibration").targets[0]
            assert found.label == "sparsity 0.6 (decoder bytes)"
            anatomy = repository.get_model("tiny").anatomy
            limits = settings.limits(anatomy, settings.resolve_targets(anatomy)[0])
            assert (limits.slack(found.choice) >= 0).all()
    model = repository.get_model("tiny")
    scan = ScanFinder(repository).find(model, SpaceName.BITS)
    assert scan is not None
    assert scan.num_samples == 2 * 2 * model.anatomy.num_layers
    planner = Planner(repository, PredictorCache(repository, capacity=1))

    def ask(space: SpaceName, method: Method | None, share: float) -> int:
        most = int(achieved_costs(model.anatomy, DENSE).disk_bytes * share)
        request = PlanRequest(model="tiny", space=space, method=method, budget=Budget(disk_bytes=most))
        plan = planner.plan(request)
        assert plan.method == (method or Method.ADDITIVE_DP)
        assert plan == planner.plan(request)
        ranking = Ranking.from_bytes(repository.get_artifact(model.ranking_sha256).content)
        out = prune_checkpoint(folder, plan, ranking, tmp_path / f"{space}-{method}-{share}")
        written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        assert written == plan.achieved.disk_bytes <= most
        return written

    whole = achieved_costs(model.anatomy, DENSE).disk_bytes
    for asked in (None, Method.UNIFORM):
        assert ask(SpaceName.BITS, asked, 0.8) > 0.7 * whole
        assert ask(SpaceName.ALL_BITS, asked, 0.8) > 0.7 * whole
    _keeps_a_budget_of_gguf(planner, model, folder, repository, tmp_path)


def _keeps_a_budget_of_gguf(
    planner: Planner, model: ModelRecord, folder: Path, repository: Repository, tmp_path: Path
) -> None:
    """A plan for the bytes of a GGUF file, and that file: they are what the plan says."""
    pytest.importorskip("gguf")
    from gguf import GGUFReader

    from pruning.cutting.gguf.export import export_gguf

    dense = achieved_costs(model.anatomy, DENSE, gguf=TensorType.Q8_0).gguf_bytes
    assert dense is not None
    budget = Budget(gguf_bytes=int(dense * 0.9), gguf_type=TensorType.Q8_0)
    plan = planner.plan(PlanRequest(model="tiny", space=SpaceName.ALL_BITS, budget=budget))
    assert plan.target.budget == budget
    ranking = Ranking.from_bytes(repository.get_artifact(model.ranking_sha256).content)
    out = prune_checkpoint(folder, plan, ranking, tmp_path / "for-gguf")
    export_gguf(out, tmp_path / "a.gguf", tensor_type=TensorType.Q8_0, checks_encoding=False)
    reader = GGUFReader(tmp_path / "a.gguf")
    written = (tmp_path / "a.gguf").stat().st_size - int(reader.data_offset)
    assert written == plan.achieved.gguf_bytes
    assert 0.8 * dense < written <= 0.9 * dense
