"""The model card of a pruned checkpoint: what it is, what was cut, what to expect, how to load it, where it is from.

Metadata is YAML as the hub wants it. Everything comes from the plan and from what the base model says of itself.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.packed_weights import GROUP
from pruning.anatomy.vllm_support import SERVED_WEIGHTS, family_limits, untried_weights
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.base_model import BASE_CARD_NAME, CARD_NAME, BaseModel
from pruning.cutting.gguf.layouts import LAYOUTS
from pruning.cutting.pruned_config import skips
from pruning.planning.plan import PruningPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MARK = "<!-- written by lop -->"
"""Tells a card of ours from one that somebody wrote."""


def write_card(
    folder: Path, base: BaseModel, plan: PruningPlan, config: "PreTrainedConfig", dense: Sequence[DecoderLayer]
) -> None:
    """Write the card of the pruned checkpoint in `folder`; the base model's own, if it was copied there, is moved.

    `config` is the pruned model's, `dense` are the base model's decoder layers [L]. Raises OSError.
    """
    card = folder / CARD_NAME
    has_own = card.is_file()
    if has_own:
        card.replace(folder / BASE_CARD_NAME)
    text = config.get_text_config(decoder=True)
    options = plan.architecture_of(dense).items
    packs = any(option.bits is not None for _, option in options)
    cuts = any(option.units < dense[site.layer].units(site.sublayer) for site, option in options) or not packs
    sections = [
        *_what_it_is(base, plan, cuts=cuts, packs=packs),
        *_what_was_cut(plan, dense),
        *_what_to_expect(plan),
        *_how_to_load(config, plan.architecture_of(dense), cuts=cuts, packs=packs),
        *_where_from(base, plan, has_own_card=has_own),
    ]
    tags = ["lop", *(["pruned"] if cuts else []), *(["quantised"] if packs else [])]
    metadata = card_yaml(base, tags=tags, library="transformers", task=task_of(sees=text is not config))
    card.write_text(f"{metadata}{MARK}\n" + "\n".join(sections) + "\n", encoding="utf-8")


def card_yaml(base: BaseModel, *, tags: Sequence[str], library: str, task: str) -> str:
    """The metadata between two lines `---`, by the hub's names."""
    import yaml  # type: ignore[import-untyped]

    said: dict[str, Any] = {} if base.hub_id is None else {"base_model": base.hub_id}
    said |= {"library_name": library, "pipeline_tag": task, **base.metadata, "tags": list(tags)}
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---\n"


def task_of(*, sees: bool) -> str:
    """The hub's name of what the model does."""
    return "image-text-to-text" if sees else "text-generation"


def _what_it_is(base: BaseModel, plan: PruningPlan, *, cuts: bool, packs: bool) -> Iterable[str]:
    name = plain(base.name)
    shown = name if base.hub_id is None else f"[{name}](https://huggingface.co/{base.hub_id})"
    removed = ", ".join(f"{share:.1%} of {_SCOPES[scope]}" for scope, share in plan.achieved.removed.items())
    yield f"# {name.rpartition('/')[2]}, {' and '.join(['pruned'] * cuts + ['quantised'] * packs)}"
    yield ""
    bits = "weights of its decoder in fewer bits"
    yield f"{shown} without {removed},{f' {bits},' if packs else ''}" if cuts else f"{shown} with {bits},"
    made = "cut out" if cuts and not packs else "made"
    yield f"{made} by [LOP](https://arxiv.org/abs/2506.12826) as plan `{plan.plan_id}` says."
    if base.licence is not None:
        yield f"Licence of the base model: {plain(base.licence)}."
    else:
        yield "The base model's folder names no licence: ask where it came from."


_SCOPES = {"ffn": "the FFN parameters", "decoder": "the decoder", "model": "all parameters"}


def _what_was_cut(plan: PruningPlan, dense: Sequence[DecoderLayer]) -> Iterable[str]:
    architecture, achieved = plan.architecture_of(dense), plan.achieved
    yield from ("", "## What is left", "")
    yield f"{achieved.parameters:,} parameters, {achieved.disk_bytes:,} bytes of weights."
    yield from ("", "| layer | FFN channels | KV groups |", "|---|---|---|")
    for layer in dense:
        ffn, groups = (_kept(architecture, layer, half) for half in (Sublayer.FFN, Sublayer.ATTENTION))
        yield f"| {layer.index} | {ffn} | {groups} |"
    if any(option.bits is not None for _, option in architecture.items):
        how = "by GPTQ" if plan.rounds else "to nearest"
        yield from ("", f"Weights in fewer bits have a scale for every {GROUP} inputs, rounded {how}.")
        yield "transformers reads them with `pip install compressed-tensors`."
    if plan.compensates:
        yield from ("", "Down projections that were cut have a bias for what they lost.")


def _kept(architecture: Architecture, layer: DecoderLayer, half: Sublayer) -> str:
    dense = layer.units(half)
    option = architecture.options.get(Site(layer.index, half), Option(dense))
    kept, bits = option.units, "" if option.bits is None else f", {option.bits} bits"
    return "skipped" if kept == 0 else f"{dense:,}{bits}" if kept == dense else f"{kept:,} of {dense:,}{bits}"


def _what_to_expect(plan: PruningPlan) -> Iterable[str]:
    yield from ("", "## What to expect", "")
    yield from expected_lines(plan) or (
        "The plan's method predicts no quality. Measure it: `lop evaluate FOLDER --data validation.json --dense BASE`.",
    )


def expected_lines(plan: PruningPlan) -> list[str]:
    """What the plan predicts, a line each; none if it predicts nothing."""
    predicted = plan.predicted
    if predicted is None:
        return []
    where = "conversations that nothing was chosen on" if predicted.of == "unseen" else "the calibration conversations"
    when = "Predicted before cutting" if plan.planned_training is None else "Expected after the training of its plan"
    rounded = " of weights rounded to nearest," if plan.rounds else ""
    lines = [f"{when},{rounded} on {where}, not measured:", ""]
    lines.append(
        f"- KL to the dense model, nats a token: {predicted.quality:.4g}{_interval(predicted.interval, '.4g')}"
    )
    for what, share, interval in (
        ("answers that are exact", predicted.accuracy, predicted.accuracy_interval),
        ("answer tokens as the dense model's", predicted.agreement, predicted.agreement_interval),
    ):
        if share is not None:
            lines.append(f"- {what}: {share:.1%}{_interval(interval, '.1%')}")
    return lines


def _interval(bounds: tuple[float, float] | None, form: str) -> str:
    return "" if bounds is None else f" (90% interval {bounds[0]:{form}} to {bounds[1]:{form}})"


def _how_to_load(config: "PreTrainedConfig", architecture: Architecture, *, cuts: bool, packs: bool) -> Iterable[str]:
    text = config.get_text_config(decoder=True)
    auto_class = "AutoModelForCausalLM" if text is config else "AutoModelForImageTextToText"
    yield from ("", "## How to load it", "")
    if not cuts:
        yield "All layers have the dense model's sizes:"
        yield from ("", "```python", f"from transformers import {auto_class}", "")
        yield from (f"model = {auto_class}.from_pretrained(FOLDER)", "```", "")
    else:
        extras = "apply,quantise" if packs else "apply"
        yield "Layers differ in size (`per_layer_config` in config.json), so a runtime"
        yield f'must build each by its own numbers. With `pip install "lop-service[{extras}]"`:'
        yield from ("", "```python", "import lop", f"from transformers import {auto_class}", "")
        yield "model = lop.load_pruned(FOLDER)  # or, from here on, by transformers itself (pipeline and Trainer too):"
        yield "lop.register_transformers()"
        yield from (f"model = {auto_class}.from_pretrained(FOLDER)", "```", "")
        if skips(architecture):
            yield "Not without either: the files have no weights for it, so"
            yield "plain from_pretrained makes what is skipped anew, of random weights, and only warns."
            yield ""
    yield from _llama_cpp(str(text.model_type), packs=packs)
    if cuts:
        yield from _vllm(config)
        yield "- SGLang, TensorRT-LLM: they build every layer whole and of one size, so they cannot run it."
    else:
        yield "- vLLM reads compressed-tensors by itself: `vllm serve FOLDER`."


def _llama_cpp(family: str, *, packs: bool) -> Iterable[str]:
    if family in LAYOUTS:
        size = "" if LAYOUTS[family].per_layer else ", every layer filled up to the widest one's size"
        yield f"- llama.cpp, Ollama, LM Studio: `lop export gguf --model FOLDER --out model.gguf`{size}."
        yield "  `lop inspect FOLDER` says whether that refuses something of this model."
        if packs:
            yield "  8 bits become q8_0 and 4 bits q4_0, with the same whole numbers."
    else:
        yield f"- llama.cpp: not for `{family}` decoders yet; `lop export gguf` says why."


def _vllm(config: "PreTrainedConfig") -> Iterable[str]:
    """As `lop inspect` has it, by the same table (pruning/anatomy/vllm_support.py)."""
    if (untried := untried_weights(config)) is not None:
        yield f"- vLLM: `lop-vllm` refuses {untried}; it serves {SERVED_WEIGHTS}."
        return
    limits = family_limits(str(config.model_type))
    yield f"- vLLM{limits}: install `lop-vllm` beside it (integrations/vllm of lop-service), then `vllm serve FOLDER`."
    yield "  Without it, vLLM builds every layer whole and of one size, and stops where a shape differs, if one does."


def _where_from(base: BaseModel, plan: PruningPlan, *, has_own_card: bool) -> Iterable[str]:
    came = plan.provenance
    facts = {
        "base model": plain(base.name),
        "plan": f"`{plan.plan_id}`, made {plan.created_at:%Y-%m-%d}; all of it in [{PLAN_NAME}]({PLAN_NAME})",
        "method": plain(plan.method),
        "model id, fingerprint": f"{plain(plan.model.id)}, `{plan.model.fingerprint}`",
        "weights that were ranked, sha256": None
        if plan.model.weights_sha256 is None
        else f"`{plan.model.weights_sha256}`",
        "ranking, sha256": f"`{plan.ranking.sha256}`",
        "calibration": came.calibration and f"`{plain(came.calibration)}`",
        "predictor": came.predictor and f"`{plain(came.predictor)}`",
        "note": came.note and plain(came.note),
    }
    yield from ("", "## Where it comes from", "", "| | |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in facts.items() if value)
    if has_own_card:
        yield from ("", f"The base model's own card: [{BASE_CARD_NAME}]({BASE_CARD_NAME}).")


def plain(text: str) -> str:
    """`text` on one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")
