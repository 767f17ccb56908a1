"""`lop search`: the offline search, and the ones that it is compared with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.commands.after_recovery import PANEL, recovered_search, show_after_recovery
from lop.commands.engine_options import CacheGib, EngineName, NumActors, RayAddress
from lop.commands.latency_targets import (
    Batch,
    Device,
    LatencyShares,
    OutputTokens,
    PromptTokens,
    latency_targets,
    tell_what_is_left_out,
)
from lop.commands.options import (
    DEFAULT_DATABASE,
    DEFAULT_STORE,
    Database,
    Json,
    ModelId,
    Seed,
    Store,
    conversations_of,
    default_targets,
    open_database,
)
from lop.console.console import bar, print_json, print_line, print_table, stderr
from lop.console.kept_columns import kept_columns
from lop.console.quality import NO_EXACT_MATCH, quality_cells, quality_columns
from lop.workflows.engines import Engine, EngineOptions, squares_for
from mcts.settings import DEFAULT_PARALLEL_LEAVES, DEFAULT_SIMULATIONS, SearchMethod
from pruning.anatomy.architecture import Sublayer
from pruning.data.folds import MIN_FOLD_SIZE, MIN_FOLDS
from pruning.errors import InputError
from pruning.measuring.metrics import exact_match_tells
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO
from pruning.planning.scope import Scope
from pruning.planning.target import usual_scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lop.console.kept_layers import KeptLayers
    from lop.workflows.validating import Validated
    from mcts.result import SearchResult
    from mcts.settings import SearchSettings
    from pruning.anatomy.anatomy import ModelAnatomy
    from pruning.measuring.metrics import Metrics
    from values.unseen import UnseenPoint


def search(
    model: ModelId,
    data: Annotated[Path, typer.Option("--data", "-d", help="Calibration conversations, LLaVA-format JSON.")],
    sparsity: Annotated[
        list[float] | None,
        typer.Option(
            "--sparsity",
            "-s",
            help="Target to search; repeat for several. Default: 0.2 to 0.7 in tenths, in other spaces than ffn 0.15, "
            "0.3, 0.45 and 0.6. Where bits may change, of the bytes of the decoder's layers; where densities may, of "
            "the weights of all sub-layers.",
        ),
    ] = None,
    scope: Annotated[
        Scope | None,
        typer.Option(
            help="What the sparsities count: ffn by default in the space of FFN widths, decoder in the others, whose "
            "sparsities may not count FFN parameters alone.",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    latency_share: LatencyShares = None,
    batch: Batch = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    space: Annotated[
        SpaceName,
        typer.Option(
            help="What may be changed: FFN widths; KV groups with all their query heads, down to no attention at all; "
            "whole layers; or FFN widths and KV groups together, each down to nothing; bits: of the weights of each "
            "sub-layer, 8, 4 or as they are; or all of that together; density: of the weights of each sub-layer, "
            "0.2 to 0.9 or all, the others zeroed, which makes nothing smaller or faster.",
        ),
    ] = SpaceName.FFN,
    method: Annotated[
        SearchMethod,
        typer.Option(help="What chooses the configurations: this product's search, or one to compare it with."),
    ] = SearchMethod.MCTS,
    evaluations: Annotated[
        int,
        typer.Option(
            "--evaluations",
            "-n",
            min=1,
            help="Configurations scored a target. If time is short, score fewer rather than on fewer conversations.",
        ),
    ] = 200,
    seed: Seed = 0,
    num_levels: Annotated[
        int, typer.Option(min=2, help="Widths to choose from, a layer, and numbers of KV groups at most.")
    ] = DEFAULT_NUM_LEVELS,
    round_to: Annotated[int, typer.Option(min=1, help="Widths are multiples of this.")] = DEFAULT_ROUND_TO,
    conversations: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Use only the first N conversations. What is best on few is not best on others: in equal time, fewer "
            "evaluations on all of them find more.",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Other conversations: score the best configurations on them too, report the gap, and let plans of "
            "this search predict that quality."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the best KL so far against evaluations, each target's share of the scan before them, into this "
            "file (PNG, SVG or PDF); in other spaces than ffn also what the best configurations keep of every layer."
        ),
    ] = None,
    parallel_leaves: Annotated[
        int,
        typer.Option(
            min=1,
            help="Configurations chosen before the first of them is scored: as many can run in parallel. Part of what "
            "is searched: engines agree if it is equal, and the default is the same for all. Raise it to the number "
            "of actors if that is higher; each step then decides from a little less.",
        ),
    ] = DEFAULT_PARALLEL_LEAVES,
    simulations: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tree simulations that propose configurations too, per evaluation. None by default: they gained on "
            "one benchmark, lost on another, and changed nothing elsewhere (docs/search.md).",
        ),
    ] = DEFAULT_SIMULATIONS,
    after_recovery: Annotated[
        str | None,
        typer.Option(
            "--after-recovery",
            metavar="RECIPE",
            help="Then recover the finalists of each target by this recipe, JSON or a file of it, and choose what is "
            "best for after recovery.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="MINUTES",
            min=0,
            help="Of all recoveries together, those of earlier runs of the same command included.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    finalists: Annotated[
        int, typer.Option("--finalists", min=1, help="Of each target, at most.", rich_help_panel=PANEL)
    ] = 8,
    recovery_data: Annotated[
        Path | None,
        typer.Option("--recovery-data", help="Conversations to train on. Default: --data.", rich_help_panel=PANEL),
    ] = None,
    selection: Annotated[
        Path | None,
        typer.Option(
            "--selection",
            help="Conversations that decide between recovered models. Default: an eighth of those to train on, 512 at "
            "most, kept back.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    engine: EngineName = Engine.LOCAL,
    address: RayAddress = None,
    actors: NumActors = None,
    cache_gib: CacheGib = None,
    queue: Annotated[
        bool,
        typer.Option(
            "--queue", help="Leave it to a `lop worker`, with the content of the data, instead of running it here."
        ),
    ] = False,
    store: Store = DEFAULT_STORE,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Search layer-wise configurations and store every scored sample.

    Interrupted or killed, run the same command again: it reads what was stored and goes on where it stopped. So it is
    with --validation for a search that is done: nothing is searched again. With --after-recovery, what was recovered
    is not recovered again either, and --validation is also told of recovered models, and decides nothing.
    """
    from lop.console.pictures import check_picture, draw_search
    from lop.workflows.queueing import queue_search
    from lop.workflows.searching import record_result, search_model
    from lop.workflows.validating import check_disjoint, validate
    from mcts.progress import SearchProgressBar
    from mcts.settings import SearchSettings
    from pruning.data.conversations import calibration_id
    from service.dense_metrics import dense_metrics
    from service.devices import priced
    from storage.data_store import open_store

    options = EngineOptions(engine, address, actors, cache_gib)
    if plot is not None:
        check_picture(plot)
    if queue and (plot is not None or validation is not None):
        raise InputError(
            "a queued search draws and validates nothing",
            values="--queue with --plot or --validation",
            remedy="Run it here, or use `lop compare` when it is done",
        )
    if queue and after_recovery is not None:
        raise InputError(
            "a queued search recovers nothing", values="--queue with --after-recovery", remedy="Run it here"
        )
    if queue and engine is not Engine.LOCAL:
        raise InputError(
            "a queued search runs on its worker's engine",
            values=f"--queue --engine {engine}",
            remedy="Give --engine to `lop worker`",
        )
    settings = SearchSettings(
        sparsities=tuple(sparsity or default_targets(space)),
        scope=scope or usual_scope(space),
        axes=space,
        method=method,
        num_evaluations=evaluations,
        seed=seed,
        num_levels=num_levels,
        round_to=round_to,
        parallel_leaves=parallel_leaves,
        num_simulations=simulations,
        latency=latency_targets(
            device,
            latency_share,
            {"batch": batch, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens},
        ),
    )
    with open_database(database) as repository:
        anatomy = repository.get_model(model).anatomy
        targets = settings.resolve_targets(anatomy, priced(repository, anatomy, settings.latency))
        tell_what_is_left_out(settings, targets)
        loaded = conversations_of(data, conversations)
        held_out = [] if validation is None else conversations_of(validation)
        check_disjoint(loaded, held_out)
        recovering = recovered_search(
            repository.get_model(model),
            settings,
            recipe=after_recovery,
            budget=budget,
            finalists=finalists,
            data=data,
            train=recovery_data,
            selection=selection,
            validation=validation,
        )
        if queue:
            job = queue_search(repository, open_store(store), model, loaded, settings, name=data.name)
            if json:
                print_json({"job": job.id, "status": job.status, "dataset": job.settings["dataset"]})
            else:
                print_line(f"queued job {job.id}; a running `lop worker` takes it, `lop job show {job.id}` tells of it")
            return
        squares = None
        if space.has_density:  # once, for the search and its validation
            with bar("measuring inputs") as on_batch:
                squares = squares_for(repository.get_model(model), loaded, on_batch=on_batch)
        with SearchProgressBar() as progress:
            result = search_model(
                repository,
                model,
                loaded,
                settings,
                name=data.name,
                progress=progress,
                engine=options,
                squares=squares,
            )
        samples = repository.count_samples(model)
        if plot is not None:
            share = -(-result.scan_evaluations // len(result.targets))
            draw_search(
                {t.label: {str(method): t.curve} for t in result.targets},
                plot,
                first={str(method): share},
                found=[] if space is SpaceName.FFN else _best_layers(settings, anatomy, result),
            )
            stderr().print(f"wrote {plot}", markup=False)
        dense = dense_metrics(repository, repository.get_model(model), calibration_id(loaded))
        validated = recovered = None
        try:
            if validation is not None:
                validated = validate(
                    repository,
                    model,
                    held_out,
                    result,
                    calibration=loaded,
                    space=settings.space(anatomy),
                    name=validation.name,
                    engine=options,
                    squares=squares,
                )
                record_result(repository, model, loaded, settings, result, name=data.name, validated=validated)
            recovered = None if recovering is None else recovering.run(repository, model, loaded, settings)
        finally:  # a validation or a recovery that fails takes nothing of the search with it
            if json:
                document = {"model": model, "samples": samples, **result.to_dict()}
                if dense is not None:
                    document["dense"] = dense.to_dict()
                if validated is not None:
                    document["validation"] = [metrics.to_dict() for metrics in validated.metrics]
                if recovered is not None:
                    document["after_recovery"] = recovered.to_dict()
                print_json(document)
            else:
                _show(model, settings, anatomy, result, dense, validated)
                option = "" if space is SpaceName.FFN else f" --space {space}"
                then = f"train the predictor with `lop train --model {model}{option}`"
                if space not in SPACES_OF_UNITS:  # which no predictor knows
                    target = "a sparsity" if space.has_density else "a budget"
                    then = f"plan with `lop plan --model {model}{option}` and {target}"
                print_line(f"{samples} samples stored; {then}")
                if recovered is not None:
                    show_after_recovery(model, option, recovered)


def _show(
    model: str,
    settings: "SearchSettings",
    anatomy: "ModelAnatomy",
    result: "SearchResult",
    dense: "Metrics | None",
    validated: "Validated | None",
) -> None:
    """The best configurations as a table; with validation, how much worse they are there.

    `dense` are the metrics of the dense model on the calibration data.
    """
    from values.unseen import UnseenPoint

    columns = ["target", *quality_columns(dense)]
    rows: list[list[Any]] = [[t.label, *quality_cells(t.metrics, dense)] for t in result.targets]
    if validated is not None:
        columns += [*quality_columns(validated.dense, "validation "), "KL gap"]
        for row, target, metrics in zip(rows, result.targets, validated.metrics, strict=True):
            gap = f"{metrics.kl / target.metrics.kl - 1:+.0%}" if target.metrics.kl > 0 else "-"
            row += [*quality_cells(metrics, validated.dense), gap]
    kept = [
        kept_columns(settings.axes, anatomy, settings.space(anatomy).architecture(t.choice)) for t in result.targets
    ]
    for row, target, own in zip(rows, result.targets, kept, strict=True):
        row += [target.evaluations, *own.values()]
    changed = kept[0] if kept else ()
    print_table(f"best configurations of {model} (calibration data)", [*columns, "evaluations", *changed], rows)
    if not all(exact_match_tells(x) for x in (dense, None if validated is None else validated.dense)):
        print_line(NO_EXACT_MATCH)
    points = {t.label: UnseenPoint.of(t.cross_validation) for t in result.targets if t.cross_validation is not None}
    if points:
        print_table(
            "what to expect of as many unseen conversations, by cross-validation: 90% intervals",
            ["target", "KL to dense", "interval", "agreement", "interval"],
            [[label, *_expected(point)] for label, point in points.items()],
        )
    print_line(_advice([*points.values()]))


def _best_layers(
    settings: "SearchSettings", anatomy: "ModelAnatomy", result: "SearchResult"
) -> "list[tuple[str, KeptLayers]]":
    """The best configuration of each target, by its label."""
    from lop.console.kept_layers import KeptLayers

    dense = {sublayer: anatomy.dense_units(sublayer) for sublayer in Sublayer}
    searched = settings.space(anatomy)
    return [(t.label, KeptLayers.of(searched.architecture(t.choice), dense)) for t in result.targets]


def _expected(point: "UnseenPoint") -> list[str]:
    x = point.expected()
    shares = [f"{share:.1%}" for share in (x.agreement, *x.agreement_interval)]
    return [f"{x.kl:.3g}", f"{x.interval[0]:.3g} to {x.interval[1]:.3g}", shares[0], f"{shares[1]} to {shares[2]}"]


def _advice(points: "Sequence[UnseenPoint]") -> str:
    """What more calibration conversations would gain on unseen ones, or why that is not known."""
    if not points:
        return (
            f"KLs are of the calibration data, and so optimistic: cross-validation needs {MIN_FOLDS} folds of "
            f"{MIN_FOLD_SIZE} conversations with different pictures, and scores by fold, which databases have since "
            "revision 0006: where they are older, run it again with another --database"
        )
    gains = sorted({f"{point.gain_of_twice:.0%}" for point in points}, key=lambda gain: int(gain[:-1]))
    least_and_most = " to ".join(dict.fromkeys([gains[0], gains[-1]]))
    return f"twice as many calibration conversations should lower the KL on unseen ones by about {least_and_most}"
