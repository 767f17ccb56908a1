"""Plans from searches of bits, alone and with units: the best that was found, filled up, of both from one database."""

from dataclasses import replace
from pathlib import Path

import pytest

from lop.workflows.registration import read_conversations, register_model
from lop.workflows.searching import search_model
from mcts.result import TargetResult
from mcts.settings import SearchMethod, SearchSettings
from pruning.allocators.methods import Method
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.data.conversations import Conversation
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName, fine_space
from pruning.planning.budget import header_bytes_bound, limits_for_budget
from pruning.planning.plan import PruningPlan
from pruning.planning.prices import decoder_bytes, weight_bytes
from pruning.planning.scope import Scope
from pruning.planning.target import counted_budget
from pruning.planning.workload import Budget
from service.finished_searches import FoundConfiguration
from service.methods.filled import filled_up
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.pruning.packed_models import save_wide_checkpoint
from tests.tiny_models import write_conversations

SETTINGS = SearchSettings(
    sparsities=(0.6,),
    scope=Scope.DECODER,
    axes=SpaceName.ALL_BITS,
    num_evaluations=12,
    num_levels=2,
    parallel_leaves=1,
)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    """Eight: four folds."""
    return read_conversations(write_conversations(tmp_path_factory.mktemp("data"), 8, turns=1))[0]


@pytest.fixture
def repository(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, conversations: list[Conversation]
) -> Repository:
    """With a small model, in bfloat16."""
    repository = open_repository(f"sqlite:///{tmp_path / 'lop.db'}", create=True)
    register_model(repository, "wide", save_wide_checkpoint(tmp_path), conversations)
    return repository


def anatomy_of(repository: Repository) -> ModelAnatomy:
    return repository.get_model("wide").anatomy


def search(
    repository: Repository, conversations: list[Conversation], space: SpaceName, **changes: object
) -> TargetResult:
    settings = replace(SETTINGS, axes=space, **changes)  # type: ignore[arg-type]
    return search_model(repository, "wide", conversations, settings, name="calibration").targets[0]


def budget_of(anatomy: ModelAnatomy, decoder: int) -> Budget:
    """Of weight files whose decoder has so many bytes."""
    files = weight_bytes(anatomy, header_bytes=header_bytes_bound(anatomy, packs=True))
    return Budget(disk_bytes=files.total - decoder_bytes(anatomy).total + decoder)


def ask(
    repository: Repository, space: SpaceName, decoder: int, method: Method | None = None, **more: object
) -> PruningPlan:
    asked = {"model": "wide", "space": space, "method": method, "budget": budget_of(anatomy_of(repository), decoder)}
    planner = Planner(repository, PredictorCache(repository, capacity=1))
    return planner.plan(PlanRequest.model_validate(asked | more))


def architecture_of(repository: Repository, found: TargetResult, space: SpaceName) -> Architecture:
    return replace(SETTINGS, axes=space).space(anatomy_of(repository)).architecture(found.choice)


def test_a_plan_is_what_was_searched(repository: Repository, conversations: list[Conversation]) -> None:
    """The default within a step of the target, with what cross-validation says of it; further off, another method."""
    anatomy = anatomy_of(repository)
    found = search(repository, conversations, SpaceName.ALL_BITS)
    assert found.evaluations == 12
    plan = ask(repository, SpaceName.ALL_BITS, found.budget)
    assert plan.method == Method.MCTS
    kept, searched = plan.architecture(anatomy), architecture_of(repository, found, SpaceName.ALL_BITS)
    space = fine_space(anatomy, SpaceName.ALL_BITS, round_to=8)
    assert (space.extents_of(kept) >= space.extents_of(searched)).all()
    assert decoder_bytes(anatomy).cost(kept) <= found.budget
    assert plan.predicted is not None
    assert plan.predicted.of == "unseen"
    assert not plan.provenance.filled_up
    assert ask(repository, SpaceName.ALL_BITS, found.budget, Method.MCTS).layers == plan.layers
    far = ask(repository, SpaceName.ALL_BITS, int(found.budget * 1.5))
    assert far.method == Method.ADDITIVE_DP
    assert "compared with bits alone" in str(far.provenance.note)
    with pytest.raises(InputError, match=r"leave at most 1/16 of the decoder's bytes.*--space all,bits -s 0\.4`"):
        ask(repository, SpaceName.ALL_BITS, int(found.budget * 1.5), Method.MCTS)
    limits = limits_for_budget(anatomy, space, budget_of(anatomy, found.budget))
    assert counted_budget(anatomy, limits) == found.budget


def test_what_was_searched_of_bits_alone_answers_in_both_spaces(
    repository: Repository, conversations: list[Conversation]
) -> None:
    """Bits alone are the plan of units and bits, too, which nobody has searched; with units it is none of bits."""
    found = search(repository, conversations, SpaceName.BITS)
    alone, joint = (ask(repository, space, found.budget) for space in (SpaceName.BITS, SpaceName.ALL_BITS))
    assert (alone.method, joint.method) == (Method.MCTS, Method.MCTS)
    anatomy = anatomy_of(repository)
    assert all(x.units == decoder_bytes(anatomy).dense[site] for site, x in alone.architecture(anatomy).items)
    assert joint.architecture(anatomy) == alone.architecture(anatomy)
    smaller = search(repository, conversations, SpaceName.ALL_BITS, sparsities=(0.8,))
    assert ask(repository, SpaceName.ALL_BITS, smaller.budget).method == Method.MCTS
    with pytest.raises(InputError, match=r"was searched by it for sparsity 0\.6 \(decoder bytes\)\)"):
        ask(repository, SpaceName.BITS, int(found.budget * 1.5), Method.MCTS)
    with pytest.raises(InputError, match=r"0\.6 \(decoder bytes\) in 'bits', sparsity 0\.8"):
        ask(repository, SpaceName.ALL_BITS, int(found.budget * 1.5), Method.MCTS)


@pytest.mark.parametrize("method", [SearchMethod.EVOLUTION, SearchMethod.RANDOM])
def test_other_searches(repository: Repository, conversations: list[Conversation], method: SearchMethod) -> None:
    found = search(repository, conversations, SpaceName.ALL_BITS, method=method, num_evaluations=3)
    plan = ask(repository, SpaceName.ALL_BITS, found.budget, Method(method))
    assert plan.method == method
    assert decoder_bytes(anatomy_of(repository)).cost(plan.architecture(anatomy_of(repository))) <= found.budget


FOUND = Architecture.of(
    {
        Site(0, Sublayer.FFN): Option(32, 8),
        Site(1, Sublayer.ATTENTION): Option(0),
        Site(2, Sublayer.FFN): Option(64, 4),
        Site(3, Sublayer.FFN): Option(48),
    }
)


def configuration(anatomy: ModelAnatomy) -> FoundConfiguration:
    bytes_kept = decoder_bytes(anatomy).cost(FOUND)
    metrics = Metrics(0.1, 1.0, 0.5, 10, 10)
    return FoundConfiguration(
        "s", Method.MCTS, "x", FOUND, bytes_kept, bytes_kept, 1, metrics, 1, 0, None, space=SpaceName.ALL_BITS
    )


def test_filling_up_takes_nothing_away(repository: Repository) -> None:
    """Half the units in 16 bits cost as much as all of them in 8: what was found goes to neither, but to more of both.
    48 units, which come in no whole groups, are 32 where plans have those alone."""
    anatomy = anatomy_of(repository)
    found, space = configuration(anatomy), fine_space(anatomy, SpaceName.ALL_BITS, round_to=8)
    dense = decoder_bytes(anatomy).total
    for share in (0.0, 0.3, 0.6, 1.0):
        most = int(found.parameters + share * (dense - found.parameters))
        filled = filled_up(found, limits_for_budget(anatomy, space, budget_of(anatomy, most)))
        kept = filled.architecture.options
        cut = kept.get(Site(3, Sublayer.FFN), Option(64)).units
        assert (filled.changed, filled.keeps_all) == (True, cut == 64)
        assert cut in (32, 64)
        assert cut == 32 or share
        for site, option in found.architecture.items:
            now = kept.get(site, Option(space.dense[site]))
            assert site == Site(3, Sublayer.FFN) or now.units >= option.units
            assert site == Site(3, Sublayer.FFN) or (now.bits or 16) >= (option.bits or 16) or not option.units
        assert decoder_bytes(anatomy).cost(filled.architecture) <= most
    assert filled.architecture == Architecture.of({})
