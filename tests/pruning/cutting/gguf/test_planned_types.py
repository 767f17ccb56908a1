"""Tensor-type files from the bits of plans, held against the tensors that are written and llama.cpp's quantiser."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from pruning.anatomy.architecture import Architecture, Option, Site
from pruning.anatomy.gguf_types import TensorType, padded
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.options import Quantisation
from pruning.cutting.gguf.planned_types import planned_types, read_types_of_bits
from pruning.cutting.gguf.quantise import export_quantised
from pruning.cutting.gguf.type_files import read_tensor_types, tensor_type_file
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import InputError, PlanError, UnsupportedModelError
from pruning.planning.gguf_price import gguf_bytes
from pruning.planning.make_plan import without_bits
from pruning.planning.plan import PlanRanking, PruningPlan
from pruning.planning.plan_downgrade import downgrade
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import plan_for, random_ranking
from tests.pruning.packed_models import ATTENTION, FFN, plan_of
from tests.tiny_models import save_tiny_checkpoint, text

LONG = Architecture.of(
    {
        Site(0, ATTENTION): Option(2, 8),
        Site(0, FFN): Option(512, 4),
        Site(1, ATTENTION): Option(0),
        Site(1, FFN): Option(0),  # so that layers 2 and 3 are the file's 1 and 2
        Site(2, ATTENTION): Option(1, 4),
        Site(2, FFN): Option(288, 4),
        Site(3, FFN): Option(256, 8),
    }
)
"""FFNs of 512, 288 and 256 channels; attention of 256 inputs in two KV groups."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("long") / "m", "llama")
    config = text.llama(
        hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=32
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cut(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units of `LONG` alone."""
    anatomy = read_anatomy(dense)
    plan = without_bits(plan_of(dense, LONG), anatomy)
    return prune_checkpoint(dense, plan, random_ranking(anatomy), tmp_path_factory.mktemp("cut") / "m")


def types_in(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in GGUFReader(file).tensors}


def matrices_of_layers(file: Path) -> set[str]:
    return {x.name for x in GGUFReader(file).tensors if x.name.startswith("blk.") and len(x.shape) > 1}


def types_of(named: Mapping[str, str], layer: int) -> dict[str, str]:
    return {name.split(".")[2]: kind for name, kind in named.items() if name.startswith(f"blk.{layer}.")}


def test_a_plan_without_its_bits_cuts_the_same(dense: Path, cut: Path) -> None:
    anatomy, plan = read_anatomy(dense), plan_of(dense, LONG)
    plain = without_bits(plan, anatomy)
    assert plain.architecture(anatomy) == anatomy.sizes(LONG)
    assert plain.plan_id != plan.plan_id
    assert plan.plan_id in (plain.provenance.note or "")
    assert plain.provenance.units_of == plan.plan_id
    assert PruningPlan.from_json(plain.to_json()) == plain
    assert plain.plan_id in downgrade(plain, anatomy).model_dump_json()
    assert "units_of" not in plan.to_json()
    assert (plain.target.budget, plain.target.sparsity, plain.predicted) == (None, None, None)
    assert plain.achieved.disk_bytes == sum(x.stat().st_size for x in cut.glob("*.safetensors"))
    with pytest.raises(PlanError, match="has none"):
        without_bits(plain, anatomy)


def test_every_matrix_of_a_layer_is_named_once(dense: Path, cut: Path, tmp_path: Path) -> None:
    named = planned_types(cut, plan_of(dense, LONG))
    export_gguf(cut, tmp_path / "a.gguf", checks_encoding=False)
    assert named.keys() == matrices_of_layers(tmp_path / "a.gguf")
    assert types_of(named, 0) == {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "q8_0"),
        **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "q4_k"),
    }
    assert types_of(named, 1) == {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "q4_k"),
        "attn_output": "q4_0",  # 128 inputs are left
        "ffn_gate": "q4_k",
        "ffn_up": "q4_k",
        "ffn_down": "q4_0",  # 288
    }
    assert types_of(named, 2) == {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "f16"),
        **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "q8_0"),
    }
    other = planned_types(cut, plan_of(dense, LONG), read_types_of_bits("8=q6_K, 4=q5_k"), stored_as=TensorType.BF16)
    assert types_of(other, 1)["ffn_down"] == "q5_0"
    assert types_of(other, 2)["ffn_down"] == "q6_k"
    assert types_of(other, 2)["attn_q"] == "bf16"
    # Each pattern finds one tensor of the file; there are no comments, and words stand between white space.
    content = tensor_type_file(named)
    words = [word.rpartition("=") for word in content.split()]
    assert len(words) == len(content.splitlines()) == len(named)
    for pattern, _, kind in words:
        assert [named[x] for x in types_in(tmp_path / "a.gguf") if re.search(pattern, x)] == [kind]
        assert pattern == pattern.lower()
    (tmp_path / "types").write_text(content)
    assert read_tensor_types(tmp_path / "types") == {p: kind.upper() for p, _, kind in words}


@pytest.mark.parametrize("base", [Quantisation.Q4_K_M, Quantisation.Q8_0])
def test_llama_cpp_quantises_each_tensor_so(base: Quantisation, dense: Path, cut: Path, tmp_path: Path) -> None:
    """Whatever its own file type would have of a tensor; default types take the bytes that the plan was priced at."""
    pytest.importorskip("llama_cpp")
    plan = plan_of(dense, LONG)
    named = planned_types(cut, plan)
    out = tmp_path / "a.gguf"
    export_quantised(cut, out, base, planned=named, checks_encoding=False)
    found = types_in(out)
    assert {name: found[name] for name in named} == named
    assert found["blk.0.attn_norm.weight"] == "f32"
    anatomy = read_anatomy(dense)
    price = gguf_bytes(anatomy, TensorType.F16)
    layers = sum(padded(int(x.n_bytes)) for x in GGUFReader(out).tensors if x.name.startswith("blk."))
    assert layers == price.cost(LONG) - price.fixed
    assert plan.achieved.gguf_bytes == price.cost(LONG)


def test_what_does_not_fit_is_refused(dense: Path, cut: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="must be cut by the plan"):
        planned_types(dense, plan_of(dense, LONG))
    with pytest.raises(PlanError, match="own dtype alone"):
        planned_types(cut, without_bits(plan_of(dense, LONG), read_anatomy(dense)))
    for words in ("4", "4=q9_9", "5=q5_0", "4=q4_k,", "=q4_k", "4=f16"):
        with pytest.raises(InputError, match="BITS=TYPE"):
            read_types_of_bits(words)
    for words in ("4=q4_k,4=q4_0", "4=q4_k,8=q8_0, 4=Q4_K"):
        with pytest.raises(InputError, match=r"bits become one type .*4 bits: q4_k and q4_"):
            read_types_of_bits(words)
    assert read_types_of_bits("4=q5_k") == {8: "q8_0", 4: "q5_k"}


def test_a_folder_that_another_plan_with_as_many_units_made_is_refused(dense: Path, cut: Path, tmp_path: Path) -> None:
    anatomy, plan = read_anatomy(dense), plan_of(dense, LONG)
    others = {
        "cut by plan": plan.model_copy(update={"plan_id": "0" * 24}),
        "ranking": plan.model_copy(update={"ranking": PlanRanking(sha256="1" * 64)}),
        "model": plan.model_copy(update={"model": plan.model.model_copy(update={"fingerprint": "2" * 64})}),
        "weights that were ranked": plan.model_copy(
            update={"model": plan.model.model_copy(update={"weights_sha256": "3" * 64})}
        ),
    }
    for name, other in others.items():
        with pytest.raises(PlanError, match=rf"must be cut by the plan .*/m: {name}: .* in the plan") as refused:
            planned_types(cut, other)
        assert "; " not in refused.value.values  # and nothing else differs
    # Other channels in the same numbers, by a plan of units alone.
    ranking = Ranking.from_scores(
        anatomy,
        [np.arange(float(x.ffn_width)) for x in anatomy.layers],
        group_scores=[np.arange(float(x.num_kv_groups)) for x in anatomy.layers],
    )
    units = plan_for(anatomy, ranking, anatomy.ffn_widths(LONG), anatomy.kv_groups(LONG))
    prune_checkpoint(dense, units, ranking, tmp_path / "units")
    with pytest.raises(PlanError, match=rf"cut by plan: none in lop_plan\.json, {plan.plan_id} in the plan; ranking: "):
        planned_types(tmp_path / "units", plan)
    shutil.copytree(cut, tmp_path / "bare")
    (tmp_path / "bare" / "lop_plan.json").unlink()
    with pytest.raises(PlanError, match=r"has no lop_plan\.json"):
        planned_types(tmp_path / "bare", plan)


def test_weights_in_few_bits_are_not_rounded_again(dense: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    out = prune_checkpoint(dense, plan_of(dense, LONG), random_ranking(read_anatomy(dense)), tmp_path / "packed")
    with pytest.raises(UnsupportedModelError, match="--method none"):
        planned_types(out, plan_of(dense, LONG))
