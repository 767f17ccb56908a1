"""A build of a few steps, from start to end, and one that is killed half-way."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from reference import build as build_script
from reference import train_language
from reference.align import AlignSettings
from reference.batches import Curriculum
from reference.blueprints import BLUEPRINTS, ModelName
from reference.build import BuildSettings, build
from reference.checkpoint import save_checkpoint
from reference.muon import Muon, orthogonalise
from reference.tokenizer import train_tokenizer
from reference.train_language import LanguageSettings, lr_factor


class KilledError(Exception):
    """Stands for a kill signal."""


def tiny(folder: Path, name: ModelName) -> BuildSettings:
    blueprint = BLUEPRINTS[name]
    short = {"steps": 4, "batch": 2, "warmup": 2, "evaluate_every": 4, "checkpoint_every": 2}
    return BuildSettings(
        out=folder / "out",
        work=folder / "work",
        vision=replace(blueprint.vision, steps=2, batch=2, measured=4),
        language=replace(blueprint.language, curriculum=Curriculum(1, 2, 3), **short),
        blueprint=blueprint,
        seed=1,
        align=AlignSettings(pictures=8, steps=3, batch=4),
        sizes={"calibration": 2, "validation": 2, "test": 2},
        use_compile=False,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for shard in sorted((folder / "out/model").glob("*.safetensors")) for k, v in load_file(shard).items()}


def kill_after(checkpoints: int) -> Callable[..., None]:
    """`save_checkpoint`, raising once it has written that many."""
    written = 0

    def save(*args: Any) -> None:
        nonlocal written
        save_checkpoint(*args)
        written += 1
        if written == checkpoints:
            raise KilledError

    return save


@pytest.mark.parametrize("name", ModelName)
def test_a_killed_build_resumes_to_the_same_weights(
    name: ModelName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Console(quiet=True)
    monkeypatch.setattr(build_script, "train_tokenizer", lru_cache(train_tokenizer))
    metrics = build(tiny(tmp_path / "whole", name), quiet)
    with monkeypatch.context() as patched:
        patched.setattr(train_language, "save_checkpoint", kill_after(1))
        with pytest.raises(KilledError):
            build(tiny(tmp_path / "killed", name), quiet)
    assert not (tmp_path / "killed/out").exists()
    build(tiny(tmp_path / "killed", name), quiet)

    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    for key, tensor in whole.items():
        assert torch.allclose(tensor, resumed[key], atol=1e-5), key

    assert set(metrics["uniform_widths"]["0.5"]) == {"validation", "test"}
    out = tmp_path / "whole/out"
    assert len(list((out / "data/images/test").glob("*.png"))) == (2 if name is ModelName.REFERENCE else 0)
    assert f"LOP {name} model" in (out / "model/README.md").read_text()
    loaded = AutoModelForImageTextToText.from_pretrained(out / "model")
    assert loaded.config.text_config.num_hidden_layers == {"reference": 12, "second": 16}[name]
    assert loaded.dtype == BLUEPRINTS[name].dtype
    assert AutoProcessor.from_pretrained(out / "model").tokenizer.eos_token == "<|end|>"


def test_orthogonalise_makes_singular_values_near_one() -> None:
    matrices = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
    for batch in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalise(batch))
        assert values.min() > 0.4
        assert values.max() < 1.4


def test_muon_moves_against_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    weight.grad = torch.eye(4)
    Muon([weight], lr=0.1).step()
    assert torch.all(weight.diagonal() < -0.05)
    assert weight.detach().triu(1).abs().max() < 1e-6


def test_learning_rate_warms_up_stays_and_descends() -> None:
    settings = LanguageSettings(steps=100, warmup=10, plateau=0.5)
    assert lr_factor(0, settings) == pytest.approx(0.1)
    assert lr_factor(10, settings) == lr_factor(49, settings) == 1.0
    assert lr_factor(75, settings) == pytest.approx(0.5)
    assert 0.0 < lr_factor(99, settings) <= 0.02
