"""Sparsifying a checkpoint on calibration conversations: for `lop sparsify`."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lop.workflows.compute import compute_device, warn_of_dtype
from lop.workflows.ecoflap_scores import SCORED_TOKENS, block_scores, kept_in
from lop.workflows.measuring import RECIPES, measure_activations, streamed
from pruning.allocators.ecoflap import EXTRA_SPARSITY, kept_parameters
from pruning.allocators.owl import LAMBDA, owl_retentions
from pruning.anatomy.layer_config import recorded_architecture
from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import load_config, read_anatomy
from pruning.cutting.rewriting.blocks import Block, Part, language_blocks
from pruning.cutting.rewriting.damped_sweep import UNCHOSEN, few_tokens, unchosen
from pruning.cutting.rewriting.planned_densities import planned_densities
from pruning.cutting.rewriting.sparsifier import LocalStep, StepInputs
from pruning.cutting.rewriting.sparsify_checkpoint import (
    Densities,
    Modules,
    Sparsity,
    SparsityReport,
    alike_within,
    sparsify_checkpoint,
    uniform_densities,
)
from pruning.cutting.rewriting.sparsity import Pattern
from pruning.cutting.streaming.solved import solved_folder
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import InputError
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.plan import PruningPlan
from pruning.planning.zeroed import zeroed_weights

if TYPE_CHECKING:
    from typing import Any

Progress = Callable[[int, int], None]


class Ratios(StrEnum):
    """Where the densities of layers come from."""

    UNIFORM = "uniform"
    ECOFLAP = "ecoflap"
    OWL = "owl"


def asked_sparsity(
    step: LocalStep,
    *,
    density: float | None,
    pattern: str | None,
    ratios: Ratios,
    modules: Modules,
    seed: int,
    scored_tokens: int | None = None,
    inputs: StepInputs = StepInputs.REWRITTEN,
) -> Sparsity:
    """What the options of the command come to; `scored_tokens` are ECoFLaP's, by default `SCORED_TOKENS`.

    Raises InputError for options that contradict each other, or a density or a pattern that is none.
    """
    if ratios is Ratios.OWL and modules is Modules.VISION:
        raise InputError(
            "OWL says nothing of vision layers: all of them would keep one share",
            values=f"--ratios {ratios} --modules {modules}",
            remedy="Choose --ratios uniform or ecoflap, or --modules language or all",
        )
    settings = _settings(ratios, seed, scored_tokens)
    if (density is None) == (pattern is None):
        raise InputError(
            "how much stays is said once",
            values="neither a sparsity nor a pattern" if density is None else "a sparsity and a pattern",
            remedy="Give --sparsity or --pattern",
        )
    if pattern is None:
        assert density is not None
        return Sparsity(step, density, settings, None, modules, inputs)
    if ratios is not Ratios.UNIFORM:
        raise InputError(
            "with a pattern all layers have the same density",
            values=f"--pattern {pattern} --ratios {ratios}",
            remedy="Leave out --ratios, or give --sparsity instead of --pattern",
        )
    parsed = Pattern.parse(pattern)
    return Sparsity(step, parsed.density, settings, parsed, modules, inputs)


def planned_sparsity(
    folder: Path, plan: PruningPlan, step: LocalStep, inputs: StepInputs = StepInputs.REWRITTEN
) -> tuple[Sparsity, Densities]:
    """What a plan for the checkpoint in `folder` asks for; raises as `planned_densities`."""
    anatomy = read_anatomy(folder)
    densities = planned_densities(plan, anatomy)
    architecture = plan.architecture(anatomy)
    zeroed = sum(zeroed_weights(anatomy, architecture).values())
    parameters = sum(block.parameters for block in language_blocks(anatomy))
    # A plan that was edited by hand keeps its id, and must not go on where the former was interrupted.
    ratios = {"name": "plan", "plan_id": plan.plan_id, "architecture": architecture.key}
    return Sparsity(step, 1.0 - zeroed / parameters, ratios, inputs=inputs), lambda _blocks: densities


def _settings(ratios: Ratios, seed: int, scored_tokens: int | None) -> "dict[str, Any]":
    settings: dict[str, Any] = {"name": ratios.value}
    if ratios is Ratios.ECOFLAP:
        settings |= {
            "seed": seed,
            "conversations": RECIPES[StatisticsKind.ZEROTH_ORDER].num_conversations,
            "answer_tokens": scored_tokens or SCORED_TOKENS,
            "extra_sparsity": EXTRA_SPARSITY,
        }
    elif scored_tokens is not None:
        raise InputError(
            "only ECoFLaP scores layers on answer tokens",
            values=f"--score-tokens {scored_tokens} --ratios {ratios}",
            remedy="Leave out --score-tokens, or give --ratios ecoflap",
        )
    return settings


def sparsify(
    folder: Path,
    out: Path,
    sparsity: Sparsity,
    conversations: Sequence[Conversation],
    *,
    densities: Densities | None = None,
    base_model: str | None = None,
    on_score: Progress | None = None,
    on_batch: Progress | None = None,
    on_bytes: Progress | None = None,
) -> SparsityReport:
    """Sparsify the checkpoint in `folder`; arguments and errors as `sparsify_checkpoint`. Without `densities`, they are
    found as the ratios of `sparsity` say: of a cut checkpoint uniform ones alone, or InputError is raised."""
    ratios = sparsity.ratios["name"]
    if ratios in (Ratios.ECOFLAP, Ratios.OWL) and recorded_architecture(load_config(folder)) is not None:
        raise InputError(
            "ratios by score are of dense layers, which have all sub-layers and one size",
            values=f"--ratios {ratios}, {folder} is cut",
            remedy="Choose --ratios uniform, or a pattern",
        )
    warn_of_dtype(folder)
    return sparsify_checkpoint(
        folder,
        out,
        sparsity,
        streamed(folder, conversations),
        calibration_id(conversations),
        compute_device(),
        densities=densities or _densities(folder, sparsity, conversations, solved_folder(out), on_score),
        base_model=base_model,
        on_batch=on_batch,
        on_bytes=on_bytes,
    )


def _densities(
    folder: Path, sparsity: Sparsity, conversations: Sequence[Conversation], kept: Path, on_score: Progress | None
) -> Densities:
    """`kept`: the folder of what is finished, which is there by the time that they are asked for."""
    match Ratios(sparsity.ratios["name"]):
        case Ratios.ECOFLAP:
            score = partial(
                block_scores,
                folder,
                conversations,
                sparsity.modules.parts,
                seed=int(sparsity.ratios["seed"]),
                num_tokens=int(sparsity.ratios["answer_tokens"]),
                keep=kept_in(kept),
                on_score=on_score,
            )
            return lambda blocks: alike_within(blocks, ecoflap_densities(blocks, score(), sparsity.density))
        case Ratios.OWL:
            return lambda blocks: alike_within(
                blocks,
                owl_densities(
                    blocks,
                    measure_activations(folder, conversations, on_batch=on_score).arrays["outlier_ratio"],
                    sparsity.density,
                ),
            )
        case Ratios.UNIFORM:
            return uniform_densities(sparsity.density)


def ecoflap_densities(blocks: Sequence[Block], scores: Mapping[Part, FloatArray], density: float) -> list[float]:
    """ECoFLaP's keep ratios: one budget over the layers of all parts."""
    sizes = [block.parameters for block in blocks]
    own = np.array([scores[block.part][block.index] for block in blocks])
    kept = kept_parameters(sizes, own, round(density * sum(sizes)))
    return [k / size for k, size in zip(kept, sizes, strict=True)]


def owl_densities(blocks: Sequence[Block], outlier_ratio: FloatArray, density: float) -> list[float]:
    """OWL's, for decoder layers; vision layers, of which the paper says nothing, keep `density`."""
    language = [block for block in blocks if block.part is Part.LANGUAGE]
    found: dict[str, float] = {}
    if language:
        sizes = np.array([block.parameters for block in language], dtype=np.float64)
        own = owl_retentions(outlier_ratio, sizes, density)
        if own.min() < 0.0 or own.max() > 1.0:
            raise InputError(
                f"OWL moves a layer's density by up to {2 * LAMBDA:g}, which must stay between 0 and 1",
                values=f"{own.min():.3f} to {own.max():.3f}",
                remedy="Ask for a sparsity further from 0 and 1, or for --ratios ecoflap",
            )
        found = {block.key: float(x) for block, x in zip(language, own, strict=True)}
    return [found.get(block.key, density) for block in blocks]


def warnings_of(notes: "Mapping[str, Mapping[str, Any]]") -> list[str]:
    """What a user should know of how weights were found, from the notes on projections."""
    found = []
    if (short := few_tokens(notes)) is not None:
        tokens, inputs = short
        found.append(
            f"{tokens:,} calibration tokens for up to {inputs:,} inputs of a projection: without damping nothing could "
            "be solved, with it weights make up for less than they could. Use more conversations: some ten tokens an "
            "input"
        )
    if number := unchosen(notes):
        found.append(
            f"of {number} of {len(notes)} projections nothing was held out to choose their damping by: it is "
            f"{UNCHOSEN:g}, as set by hand. Use more conversations: of the decoder every fifth is held out, the second "
            "one first, of a vision tower every fifth batch, the second one first"
        )
    return found
