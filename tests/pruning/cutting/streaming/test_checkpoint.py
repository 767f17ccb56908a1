"""From files to files: the same bytes as cutting tensors whole and saving them with the format's own writer."""

import errno
import json
import os
import shutil
import stat
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints import blocks
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import INDEX_NAME, stored_tensors
from pruning.checkpoints.loading import PLAN_NAME, load_model
from pruning.checkpoints.safetensors_layout import file_layout, plan_shards
from pruning.cutting.base_model import BASE_CARD_NAME, CARD_NAME
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.cutting.streaming import bias, shard_writer
from pruning.cutting.streaming.companions import companion_files
from pruning.cutting.streaming.outputs import output_tensors
from pruning.errors import CheckpointError
from pruning.forward import compensation
from pruning.forward.compensation import compensated_bias
from pruning.planning.plan import BIAS, PruningPlan
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, kept_groups, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint

TEXT = "language_model.model.layers"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def cut_by_hand(folder: Path, plan: PruningPlan, ranking: Ranking) -> dict[str, torch.Tensor]:
    """What is kept of a LLaVA with a tiny Llama (4 heads of 8 in 2 groups), by the names of its projections."""
    tensors = tensors_of(folder)
    assert ranking.kv_groups is not None
    anatomy = read_anatomy(folder)
    architecture = plan.architecture(anatomy)
    sizes = zip(anatomy.ffn_widths(architecture), anatomy.kv_groups(architecture), strict=True)
    for layer, (width, num_groups) in enumerate(sizes):
        channels = torch.from_numpy(np.sort(ranking.ffn[layer][:width])).long()
        groups = sorted(ranking.kv_groups[layer][:num_groups].tolist())
        keys = torch.tensor([row for g in groups for row in range(8 * g, 8 * g + 8)])
        queries = torch.tensor([row for g in groups for row in range(16 * g, 16 * g + 16)])
        rows = {"mlp.gate_proj": channels, "mlp.up_proj": channels, "self_attn.q_proj": queries}
        rows |= {"self_attn.k_proj": keys, "self_attn.v_proj": keys}
        for name, kept in rows.items():
            for kind in ("weight", "bias"):
                full = f"{TEXT}.{layer}.{name}.{kind}"
                if full in tensors:
                    tensors[full] = tensors[full][kept].contiguous()
        for name, kept in (("mlp.down_proj", channels), ("self_attn.o_proj", queries)):
            full = f"{TEXT}.{layer}.{name}.weight"
            tensors[full] = tensors[full][:, kept].contiguous()
    return tensors


def save_by_reference(tensors: dict[str, torch.Tensor], folder: Path, *, max_shard_size: int) -> None:
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
    headers = [(name, tuple(x.shape), names[x.dtype]) for name, x in sorted(tensors.items())]
    for file, inside in plan_shards(headers, max_shard_size=max_shard_size).filename_to_tensors.items():
        save_file({name: tensors[name] for name in inside}, folder / file, metadata={"format": "pt"})


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("max_shard_size", [5 * 10**9, 50_000])
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llava-llama", torch.bfloat16),
        ("llava-llama", torch.float32),
        ("llava-llama-biases", torch.float16),
        ("llava-llama-tied", torch.bfloat16),
    ],
)
def test_bytes_are_those_of_a_whole_cut_and_the_reference_writer(
    family: str, dtype: torch.dtype, max_shard_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = "5GB" if max_shard_size > 10**9 else "60KB"
    model = load_model(save_tiny_checkpoint(tmp_path / "float", family), dtype=dtype)
    model.save_pretrained(tmp_path / "dense", max_shard_size=shard)
    anatomy = read_anatomy(tmp_path / "dense")
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    monkeypatch.setattr(shard_writer, "_WRITEBACK_BYTES", 1000)
    monkeypatch.setattr(shard_writer.write_shard, "__kwdefaults__", {"block_bytes": 500})
    out = prune_checkpoint(tmp_path / "dense", plan, ranking, tmp_path / "out", max_shard_size=max_shard_size)

    expected = cut_by_hand(tmp_path / "dense", plan, ranking)
    (tmp_path / "expected").mkdir()
    save_by_reference(expected, tmp_path / "expected", max_shard_size=max_shard_size)
    assert weights_of(out) == weights_of(tmp_path / "expected")
    assert (out / INDEX_NAME).exists() == (len(weights_of(out)) > 1)
    if shard == "5GB":
        assert sum(map(len, weights_of(out).values())) == plan.achieved.disk_bytes
    else:
        index = json.loads((out / INDEX_NAME).read_text())
        assert {name: tensor.path.name for name, tensor in stored_tensors(out).items()} == index["weight_map"]
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in expected.values())


def test_mixed_dtypes_are_in_the_reference_writers_order(tmp_path: Path) -> None:
    """Norms are float32 in some checkpoints, and towers are of another dtype than the language model."""
    dense = save_tiny_checkpoint(tmp_path / "float")
    tensors = tensors_of(dense)
    for name in tensors:
        if "norm" not in name:
            tensors[name] = tensors[name].to(torch.float16 if "vision" in name else torch.bfloat16)
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    out = prune_checkpoint(dense, plan, ranking, tmp_path / "out")
    (tmp_path / "expected").mkdir()
    save_by_reference(cut_by_hand(dense, plan, ranking), tmp_path / "expected", max_shard_size=10**9)
    assert weights_of(out) == weights_of(tmp_path / "expected")


@pytest.mark.parametrize("family", ["llava-llama", "llava-llama-biases", "llava-phi3", "llava-phi"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compensated_biases_are_those_of_whole_weights(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """In rows of 128, the 32 here are one block; `test_long_biases` has more."""
    load_model(save_tiny_checkpoint(tmp_path / "float", family), dtype=dtype).save_pretrained(tmp_path / "dense")
    anatomy = read_anatomy(tmp_path / "dense")
    ranking = compensating(anatomy)
    plan = compensating_plan(anatomy, ranking)
    found = tensors_of(prune_checkpoint(tmp_path / "dense", plan, ranking, tmp_path / "out"))
    dense = tensors_of(tmp_path / "dense")
    out = "fc2" if family == "llava-phi" else "down_proj"
    for layer in (0, 1, 3):  # layer 2 keeps all of its channels
        name = f"{TEXT}.{layer}.mlp.{out}"
        expected = compensated_bias(dense[f"{name}.weight"], dense.get(f"{name}.bias"), ranking, layer, WIDTHS[layer])
        assert expected.abs().max() > 0
        assert torch.equal(found[f"{name}.bias"], expected)
    untouched = dense.get(f"{TEXT}.2.mlp.{out}.bias")
    assert (untouched is None) == (f"{TEXT}.2.mlp.{out}.bias" not in found)
    assert untouched is None or torch.equal(found[f"{TEXT}.2.mlp.{out}.bias"], untouched)


def compensating(anatomy: ModelAnatomy) -> Ranking:
    rng = np.random.default_rng(0)
    widths = [x.ffn_width for x in anatomy.layers]
    return Ranking.from_scores(anatomy, [rng.random(w) for w in widths], means=[rng.normal(size=w) for w in widths])


def compensating_plan(anatomy: ModelAnatomy, ranking: Ranking) -> PruningPlan:
    plan = plan_for(anatomy, ranking, WIDTHS)
    return plan.model_copy(update={"recovery": (BIAS,)})


def test_long_biases_are_summed_in_the_same_blocks(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = read_anatomy(checkpoint)
    ranking = compensating(anatomy)
    name = f"{TEXT}.0.mlp.down_proj"
    monkeypatch.setattr(compensation, "BIAS_ROWS", 5)  # of 32
    monkeypatch.setattr(bias, "BIAS_ROWS", 5)
    outputs = output_tensors(anatomy, compensating_plan(anatomy, ranking), ranking, stored_tensors(checkpoint))
    found = b"".join(bytes(block) for block in outputs[f"{name}.bias"].blocks())
    weight = tensors_of(checkpoint)[f"{name}.weight"]
    assert found == compensated_bias(weight, None, ranking, 0, WIDTHS[0]).numpy().tobytes()
    assert len(list(outputs[f"{name}.bias"].blocks())) == 7


def test_what_belongs_to_the_checkpoint_comes_along(checkpoint: Path, tmp_path: Path) -> None:
    source, blobs = tmp_path / "cache" / "snapshots" / "main", tmp_path / "cache" / "blobs"
    source.mkdir(parents=True)
    shutil.copytree(checkpoint, blobs)
    for path in blobs.iterdir():
        (source / path.name).symlink_to(path)  # as in the hub's cache
    along = {
        "LICENSE.txt": "l", "Notice": "n", "README.md": "# card", "USE_POLICY.md": "p", "tokenizer.model": "t",
        "chat_template.jinja": "j", "chat_template.json": "{}", "generation_config.json": "{}",
        "preprocessor_config.json": "{}", "video_preprocessor_config.json": "{}", "special_tokens_map.json": "{}",
        "added_tokens.json": "{}", "vocab.json": "{}", "merges.txt": "m", "qwen.tiktoken": "q",
        "additional_chat_templates/rag.jinja": "r",
    }  # fmt: skip
    left = ("modeling_x.py", "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors",
            "lop_plan.json", "metrics.json", ".gitattributes", "additional_chat_templates/x.py")  # fmt: skip
    (source / "additional_chat_templates").mkdir()
    for name, text in {**along, **dict.fromkeys(left, "x")}.items():
        (source / name).unlink(missing_ok=True)
        (source / name).write_text(text)
    anatomy = read_anatomy(source)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS)
    out = prune_checkpoint(source, plan, ranking, tmp_path / "out")
    for name, text in along.items():  # the base model's card makes room for the pruned one's
        assert (out / (BASE_CARD_NAME if name == CARD_NAME else name)).read_text() == text
    assert (out / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    weights = {path.name for path in out.glob("model*.safetensors")}
    assert not any(path.is_symlink() for path in out.iterdir())
    assert written == {str(path) for path in companion_files(source)} | weights | {
        "config.json",
        PLAN_NAME,
        BASE_CARD_NAME,
    }
    assert (out / PLAN_NAME).read_text() == plan.to_json()


def test_progress_counts_every_byte_of_the_weight_files(
    checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path
) -> None:
    ranking = random_ranking(anatomy)
    seen: list[tuple[int, int]] = []
    out = prune_checkpoint(
        checkpoint,
        plan_for(anatomy, ranking, WIDTHS),
        ranking,
        tmp_path / "out",
        max_shard_size=50_000,
        on_bytes=lambda done, total: seen.append((done, total)),
    )
    written = sum(map(len, weights_of(out).values()))
    assert {total for _, total in seen} == {written}
    done = [x for x, _ in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, written)


def test_memory_is_a_few_blocks(checkpoint: Path, anatomy: ModelAnatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block of any tensor is larger than asked for, but for a single element."""
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    outputs = output_tensors(anatomy, plan, ranking, stored_tensors(checkpoint))
    asked: list[int] = []
    original = blocks.read_bytes

    def counted(file: FileIO, offset: int, count: int) -> blocks.Bytes:
        asked.append(count)
        return original(file, offset, count)

    monkeypatch.setattr(blocks, "read_bytes", counted)
    for output in outputs.values():
        content = b"".join(bytes(block) for block in output.blocks(256))
        assert len(content) == file_layout([output.header]).file_bytes - len(file_layout([output.header]).head)
    assert max(asked) <= 256


def test_a_source_that_changes_while_it_is_read_leaves_nothing(
    checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    ranking = random_ranking(anatomy)

    def shrink(done: int, _total: int) -> None:
        for path in source.glob("*.safetensors") if done else ():
            path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(CheckpointError, match="stay as it is"):
        prune_checkpoint(source, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out", on_bytes=shrink)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_pruned_config_names_no_code(checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    document = json.loads((source / "config.json").read_text())
    document["auto_map"] = {"AutoConfig": "code.X"}
    document["text_config"]["auto_map"] = {"AutoConfig": "code.Y"}
    (source / "config.json").write_text(json.dumps(document))
    anatomy = read_anatomy(source)
    ranking = random_ranking(anatomy)
    out = prune_checkpoint(source, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out")
    assert "auto_map" not in (out / "config.json").read_text()


def test_hints_that_a_file_system_will_not_take(
    checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither early writing nor the sync of a folder is worth losing what is written."""
    real, asked = os.fsync, []

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            asked.append("folder")
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    def no_hints(*_arguments: int) -> None:
        asked.append("hint")
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", no_folders)
    monkeypatch.setattr(os, "posix_fadvise", no_hints)
    monkeypatch.setattr(shard_writer, "_WRITEBACK_BYTES", 1000)
    ranking = random_ranking(anatomy)
    out = prune_checkpoint(checkpoint, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out")
    assert set(asked) == {"hint", "folder"}
    assert weights_of(out)


def test_a_weight_file_that_does_not_reach_the_disk_is_an_error(
    checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def no_weights(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 100_000:
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", no_weights)
    ranking = random_ranking(anatomy)
    with pytest.raises(CheckpointError, match="output must be writable"):
        prune_checkpoint(checkpoint, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
