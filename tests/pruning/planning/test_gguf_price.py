"""Bytes of GGUF files: prices against files that the gguf package really wrote, and budgets that no plan exceeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from pruning.allocators.uniform import evenness
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.anatomy.gguf_types import LAYERS_OF_ONE_SIZE, LAYERS_OF_OWN_SIZE, TensorType, padded
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.layouts import LAYOUTS
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import InfeasibleBudgetError, InputError, PlanSchemaError
from pruning.planning.axis_spaces import SpaceName, fine_space
from pruning.planning.budget import limits_for_budget
from pruning.planning.cost import achieved_costs
from pruning.planning.gguf_price import gguf_bytes
from pruning.planning.limits import LimitKind
from pruning.planning.make_plan import exceeded_limits, make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.plan_downgrade import downgrade
from pruning.planning.ranking import Ranking
from pruning.planning.workload import Budget, Workload
from tests.pruning.cut_models import random_ranking
from tests.pruning.made_up_limits import cost_of, draw_choice, is_tight
from tests.pruning.packed_models import BITS, JOINT, plan_of, save_wide_checkpoint
from tests.tiny_models import save_tiny_checkpoint, text

ATTENTION, FFN = Sublayer.ATTENTION, Sublayer.FFN

UNEVEN = Architecture.of(
    {
        Site(0, FFN): Option(40),  # no block divides it, nor one KV group's 16 inputs
        Site(0, ATTENTION): Option(1),
        Site(1, FFN): Option(3),
        Site(2, FFN): Option(33),
        Site(3, FFN): Option(63),
    }
)
SKIPS = Architecture.of(
    {
        Site(0, FFN): Option(0),
        Site(1, FFN): Option(0),
        Site(1, ATTENTION): Option(0),
        Site(2, ATTENTION): Option(0),
        Site(3, FFN): Option(24),
    }
)
FIRST_HAS_NO_HEADS = Architecture.of({Site(0, ATTENTION): Option(0), Site(0, FFN): Option(8)})
SECOND_BECOMES_FIRST = Architecture.of(
    {Site(0, ATTENTION): Option(0), Site(0, FFN): Option(0), Site(1, ATTENTION): Option(0)}
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of 64 channels and 2 KV groups of 2 heads of 8, in bfloat16."""
    return save_wide_checkpoint(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def anatomy(wide: Path) -> ModelAnatomy:
    return read_anatomy(wide)


def tensor_bytes_in(file: Path) -> int:
    """What the file's tensors take, and that it is all behind the metadata."""
    reader = GGUFReader(file)
    found = sum(padded(int(tensor.n_bytes)) for tensor in reader.tensors)
    assert found == file.stat().st_size - reader.data_offset
    return found


@pytest.mark.parametrize("wanted", [TensorType.F16, TensorType.Q8_0, TensorType.F32])
@pytest.mark.parametrize(
    "architecture",
    [DENSE, UNEVEN, SKIPS, FIRST_HAS_NO_HEADS, SECOND_BECOMES_FIRST, BITS, JOINT],
    ids=["dense", "uneven", "skips", "no-heads-first", "second-first", "bits", "joint"],
)
def test_a_written_file_takes_what_its_price_says(
    architecture: Architecture, wanted: TensorType, wide: Path, anatomy: ModelAnatomy, tmp_path: Path
) -> None:
    if any(option.bits for _, option in architecture.items):
        pytest.importorskip("compressed_tensors")
    plan = plan_of(wide, architecture)
    out = prune_checkpoint(wide, plan, random_ranking(anatomy), tmp_path / "out")
    export_gguf(out, tmp_path / "a.gguf", tensor_type=wanted, checks_encoding=False)
    written = tensor_bytes_in(tmp_path / "a.gguf")
    assert gguf_bytes(anatomy, wanted).cost(architecture) == written
    assert achieved_costs(anatomy, architecture, gguf=wanted).gguf_bytes == written
    if wanted is TensorType.F16 and architecture in (BITS, JOINT):  # said beside what compressed-tensors' files take
        assert plan.achieved.gguf_bytes == written
        assert plan.achieved.disk_bytes == sum(x.stat().st_size for x in out.glob("*.safetensors"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3-text", "llava-llama-biases", "smolvlm"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Biases, tied heads, norms of queries and keys; and layers of one size, which are filled up to whole blocks."""
    folder = save_tiny_checkpoint(tmp_path / "m", family)
    export_gguf(folder, tmp_path / "a.gguf", tensor_type=TensorType.Q8_0, checks_encoding=False)
    assert gguf_bytes(read_anatomy(folder), TensorType.Q8_0).cost(DENSE) == tensor_bytes_in(tmp_path / "a.gguf")


def test_factors_of_rotary_frequencies_are_counted(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "m", "llama")
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    AutoModelForCausalLM.from_config(text.llama(rope_parameters=scaled)).save_pretrained(folder)
    export_gguf(folder, tmp_path / "a.gguf", checks_encoding=False)
    anatomy = read_anatomy(folder)
    assert gguf_bytes(anatomy, TensorType.F16).cost(DENSE) == tensor_bytes_in(tmp_path / "a.gguf")
    assert ModelAnatomy.from_dict(anatomy.to_dict()).num_rotary_factors == anatomy.num_rotary_factors
    # Models that were registered before they were recorded: as many as there can be.
    plain = read_anatomy(save_tiny_checkpoint(tmp_path / "plain", "llama"))
    old = ModelAnatomy.from_dict({k: x for k, x in plain.to_dict().items() if k != "num_rotary_factors"})
    assert old == plain
    without = gguf_bytes(plain, TensorType.F16).fixed
    assert gguf_bytes(old, TensorType.F16).fixed == gguf_bytes(anatomy, TensorType.F16).fixed > without
    assert gguf_bytes(plain, TensorType.F16).fixed == without  # equal anatomies, each with its own price


def test_biases_that_compensation_adds_are_counted(wide: Path, anatomy: ModelAnatomy, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    widths = [x.ffn_width for x in anatomy.layers]
    ranking = Ranking.from_scores(anatomy, [rng.random(w) for w in widths], means=[rng.normal(size=w) for w in widths])
    architecture = anatomy.architecture([40, 64, 8, 32])
    plan = make_plan(
        anatomy,
        architecture,
        model_id="tiny",
        target=PlanTarget(budget=Budget(gguf_bytes=10**9, gguf_type=TensorType.Q8_0)),
        ranking=PlanRanking(sha256=ranking.sha256),
        method="flap",
        compensates=True,
    )
    out = prune_checkpoint(wide, plan, ranking, tmp_path / "out")
    export_gguf(out, tmp_path / "a.gguf", tensor_type=TensorType.Q8_0, checks_encoding=False)
    assert plan.achieved.gguf_bytes == tensor_bytes_in(tmp_path / "a.gguf")


BUDGETS = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@BUDGETS
@given(
    data=st.data(),
    name=st.sampled_from([SpaceName.ALL_BITS, SpaceName.BITS, SpaceName.ALL, SpaceName.LAYERS, SpaceName.FFN]),
    wanted=st.sampled_from(TensorType),
    with_memory=st.booleans(),
)
def test_plans_for_a_budget_never_exceed_it(
    anatomy: ModelAnatomy, data: st.DataObject, name: SpaceName, wanted: TensorType, with_memory: bool
) -> None:
    space = fine_space(anatomy, name, round_to=data.draw(st.sampled_from([1, 8, 24, 56])))
    price = gguf_bytes(anatomy, wanted)
    least = price.cost(space.architecture(space.bottom))
    most = data.draw(st.integers(int(least * 0.98), max(price.total, least) + 100))
    workload = Workload(prompt_tokens=8, output_tokens=2)
    memory = achieved_costs(anatomy, DENSE, workload).memory_bytes if with_memory else None
    budget = Budget(gguf_bytes=most, gguf_type=wanted, memory_bytes=memory, **workload.model_dump())
    if most < least:
        with pytest.raises(InfeasibleBudgetError) as refused:
            limits_for_budget(anatomy, space, budget)
        assert refused.value.binding == "gguf_bytes"
        assert refused.value.nearest_values["gguf_bytes"] == least  # and no larger plan is asked for
        limits_for_budget(anatomy, space, budget.model_copy(update={"gguf_bytes": least}))
        return
    limits = limits_for_budget(anatomy, space, budget)
    limit = next(x for x in limits.limits if x.kind is LimitKind.GGUF_BYTES)
    choice = draw_choice(data, space)
    assert cost_of(limit, choice) >= price.cost(space.architecture(choice))
    fitted = limits.fit(np.array(choice), evenness(space))
    achieved = achieved_costs(anatomy, space.architecture(fitted), workload, gguf=wanted)
    assert achieved.gguf_bytes is not None
    assert achieved.gguf_bytes <= most
    assert exceeded_limits(PlanTarget(budget=budget), achieved) == []
    if space.is_of_units:
        assert is_tight(limits, fitted)


@BUDGETS
@given(
    data=st.data(),
    name=st.sampled_from([SpaceName.ALL_BITS, SpaceName.LAYERS]),
    wanted=st.sampled_from([TensorType.F16, TensorType.Q8_0]),
)
def test_tables_are_exact_where_no_ffn_is_less_than_zeros(
    anatomy: ModelAnatomy, data: st.DataObject, name: SpaceName, wanted: TensorType
) -> None:
    """Of attention in any bits or none beside FFNs of 64 channels in 8 bits or more; and of whole layers."""
    space = fine_space(anatomy, name, round_to=32)
    price = gguf_bytes(anatomy, wanted)
    (limit,) = limits_for_budget(anatomy, space, Budget(gguf_bytes=10**9, gguf_type=wanted)).limits
    choice = list(draw_choice(data, space))
    for n, decision in enumerate(space.decisions):
        if decision.sites[0].sublayer is FFN:
            choice[n] = int(space.counts[n]) - 1 - data.draw(st.integers(0, 1))
    assert cost_of(limit, choice) == price.cost(space.architecture(choice))


@pytest.mark.parametrize("wanted", TensorType)
@pytest.mark.parametrize("compensates", [False, True])
def test_many_options_cost_what_each_costs(wanted: TensorType, compensates: bool, anatomy: ModelAnatomy) -> None:
    price = gguf_bytes(anatomy, wanted, compensates=compensates)
    for decision in fine_space(anatomy, SpaceName.ALL_BITS, round_to=1).decisions:
        (site,), (options,) = decision.sites, decision.options
        assert price.of(site, options).tolist() == [price.cost_of(site, option) for option in options]
    with pytest.raises(InputError, match="whole groups of 32"):
        price.cost_of(Site(0, FFN), Option(40, 4))


def test_the_sets_of_families_are_those_that_are_written() -> None:
    assert {kind for kind, layout in LAYOUTS.items() if layout.per_layer} == LAYERS_OF_OWN_SIZE
    assert {kind for kind, layout in LAYOUTS.items() if not layout.per_layer} == LAYERS_OF_ONE_SIZE


def test_what_has_no_price_is_refused(anatomy: ModelAnatomy, tmp_path: Path) -> None:
    phi = read_anatomy(save_tiny_checkpoint(tmp_path / "phi", "phi3"))
    with pytest.raises(InputError, match="phi3"):
        gguf_bytes(phi, TensorType.F16)
    assert achieved_costs(phi, DENSE).gguf_bytes is None
    with pytest.raises(InputError, match="0 tensors"):
        gguf_bytes(replace(anatomy, tensors=(), fingerprint="1" * 64), TensorType.F16)
    qwen3 = read_anatomy(save_wide_checkpoint(tmp_path / "qwen3", "qwen3"))
    with pytest.raises(InputError, match="filled up to the widest"):
        limits_for_budget(qwen3, fine_space(qwen3, SpaceName.FFN, round_to=8), Budget(gguf_bytes=10**9))
    limits_for_budget(qwen3, fine_space(qwen3, SpaceName.BITS, round_to=8), Budget(gguf_bytes=10**9))
    assert achieved_costs(qwen3, Architecture.of({Site(0, FFN): Option(64, 4)})).gguf_bytes is not None
    assert achieved_costs(qwen3, Architecture.of({Site(0, FFN): Option(32, 4)})).gguf_bytes is None
    with pytest.raises(ValidationError, match="give both, or leave it out"):
        Budget(gguf_type=TensorType.Q8_0)


def test_plans_say_nothing_of_it_unasked(wide: Path, anatomy: ModelAnatomy) -> None:
    """Documents of plans without bits, and of other budgets, are what they were; schema 1 has no place for it."""
    plain = plan_of(wide, UNEVEN)
    assert "gguf" not in plain.to_json()
    assert "gguf" not in Budget(disk_bytes=1).model_dump_json()
    target = PlanTarget(budget=Budget(gguf_bytes=10**9))
    ranking = PlanRanking(sha256="0" * 64)
    limited = make_plan(anatomy, UNEVEN, model_id="tiny", target=target, ranking=ranking, method="test")
    assert PruningPlan.from_json(limited.to_json()) == limited
    with pytest.raises(PlanSchemaError, match=r"target\.budget\.gguf_bytes"):
        downgrade(limited, anatomy)
