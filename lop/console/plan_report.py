"""A plan as a terminal shows it: what every layer keeps, what that costs, and what to expect of it."""

import sys
from pathlib import Path

from lop.console.console import is_unicode, print_line, print_table
from lop.console.kept_layers import ATTENTION, FFN, KeptLayers, Units, gauge, skips_in_words
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import InputError
from pruning.planning.plan import Axis, Kept, PruningPlan

GONE = "whole layer skipped"

_ATTENTION_AXES = frozenset({Axis.ATTENTION, Axis.SKIP, Axis.DENSITY})
"""Of which a picture of attention shows something."""


def show_plan(plan: PruningPlan, dense: Units | None) -> None:
    """The plan as a table, and what is limited against what is reached; without the units of the `dense` model, what is
    kept is said in numbers alone."""
    kept = None if dense is None else kept_layers(plan, dense)
    title = f"plan {plan.plan_id} for {plan.model.id}, method {plan.method}: layers that are not listed stay dense"
    rows = []
    for layer in plan.layers:
        cells = [_cell(layer.ffn, FFN, layer.index, dense), _cell(layer.attention, ATTENTION, layer.index, dense)]
        if cells == ["skipped", "skipped"]:
            cells = [GONE, GONE]
        rows.append([layer.index, *cells])
    print_table(title, ["layer", "FFN width", "KV groups"], rows)
    if kept is not None and (skips := skips_in_words(kept)):
        print_line(f"skipped: {skips}")
    sparsities = ", ".join(f"{scope} {value:.4f}" for scope, value in plan.achieved.removed.items())
    print_line(f"achieved sparsity: {sparsities}")
    if plan.achieved.zeroed:
        zeroed = ", ".join(f"{scope} {value:.4f}" for scope, value in plan.achieved.zeroed.items())
        print_line(f"zeroed, which makes nothing smaller or faster: {zeroed}")
    print_line(f"parameters {plan.achieved.parameters:,}")
    for line in cost_lines(plan):
        print_line(line)
    _show_expectation(plan)
    if plan.planned_training is not None:
        print_line("it counts on a training: cut and train it with `lop apply --recover DATA`")
    if plan.provenance.note:
        print_line(f"note: {plan.provenance.note}")


def draw_plan(plan: PruningPlan, dense: Units | None, path: Path) -> None:
    """The plan as a picture; raises InputError if the units of the `dense` model are not known."""
    from lop.console.layer_pictures import draw_plans

    if dense is None:
        raise InputError(
            "a picture of a plan needs to know the dense model's KV groups",
            values="this server does not tell them",
            remedy="Upgrade the server, or ask a database with --database",
        )
    shares, how = (plan.achieved.zeroed, "zeroed") if plan.achieved.zeroed else (plan.achieved.removed, "removed")
    said = ", ".join(f"{value:.1%} of {scope}" for scope, value in shares.items())
    draw_plans([(f"{plan.model.id}, {plan.method}: {said} {how}", kept_layers(plan, dense))], path)


def kept_layers(plan: PruningPlan, dense: Units) -> KeptLayers:
    """What `plan` keeps of a model that has `dense` units."""
    sites = ((layer.index, ((FFN, layer.ffn), (ATTENTION, layer.attention))) for layer in plan.layers)
    options = {
        Site(index, sublayer): Option(kept.units, density=kept.density)
        for index, of in sites
        for sublayer, kept in of
        if kept is not None
    }
    may_change = not _ATTENTION_AXES.isdisjoint(plan.target.space or ())
    return KeptLayers.of(Architecture.of(options), dense, may_change_attention=may_change)


def _cell(kept: Kept | None, sublayer: Sublayer, index: int, dense: Units | None) -> str:
    """What a sub-layer keeps, in words and, where the dense model is known, as a bar."""
    most = None if dense is None else dense[sublayer][index]
    if kept is not None and not kept.units:
        return "skipped"
    units = most if kept is None else kept.units
    bits = "" if kept is None or kept.bits is None else f", {kept.bits} bits"
    density = "" if kept is None or kept.density is None else f", density {kept.density:g}"
    words = "dense" if units == most else str(units)
    if most is None or units is None:
        return f"{words}{bits}{density}"
    share = units / most * (1.0 if kept is None or kept.density is None else kept.density)
    return f"{gauge(share, plain=not is_unicode(sys.stdout))} {words}{bits}{density}"


def _show_expectation(plan: PruningPlan) -> None:
    if plan.predicted is None:
        return
    where = f" ({plan.predicted.of} data)"
    print_line(f"predicted KL to dense: {plan.predicted.quality:.4f}{_range(plan.predicted.interval, '.4f')}{where}")
    for what, share, interval in (
        ("exact match", plan.predicted.accuracy, plan.predicted.accuracy_interval),
        ("agreement with the dense model", plan.predicted.agreement, plan.predicted.agreement_interval),
    ):
        if share is not None:
            print_line(f"predicted {what}: {share:.1%}{_range(interval, '.1%')}{where}")


def _range(bounds: tuple[float, float] | None, form: str) -> str:
    """What nine plans in ten keep to, if it is known."""
    return "" if bounds is None else f" ({bounds[0]:{form}} to {bounds[1]:{form}})"


def cost_lines(plan: PruningPlan) -> list[str]:
    """What the plan costs, each with its limit if there is one, and the workload that it is for."""
    achieved, budget = plan.achieved, plan.target.budget
    lines = []
    for name, label, unit in (
        ("disk_bytes", "on disk", "bytes"),
        ("gguf_bytes", "as GGUF", "bytes"),
        ("memory_bytes", "in memory", "bytes"),
        ("flops", "operations", "FLOPs"),
        ("latency_ms", "latency", "ms"),
    ):
        reached = getattr(achieved, name)
        if reached is None:
            continue
        most = None if budget is None else getattr(budget, name)
        limit = "" if most is None else f", at most {most:,} allowed"
        lines.append(f"{label} {reached:,} {unit}{limit}")
    if achieved.prefill_ms is not None and achieved.decode_ms_per_token is not None:
        lines[-1] += (
            f" ({achieved.latency_source}: prefill {achieved.prefill_ms:,.3f} ms, "
            f"then {achieved.decode_ms_per_token:,.3f} ms a token)"
        )
    work = achieved.workload
    lines.append(f"for batch {work.batch}, {work.prompt_tokens} prompt tokens and {work.output_tokens} output tokens")
    return lines
