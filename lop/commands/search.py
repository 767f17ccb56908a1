"""`lop search`: the offline Monte-Carlo tree search."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import DEFAULT_DATABASE, Database, Json, ModelId, Seed, open_database
from lop.console import print_json, print_line, print_table, warn
from pruning.levels import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO
from pruning.target import Scope

DEFAULT_TARGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def search(
    model: ModelId,
    data: Annotated[Path, typer.Option("--data", "-d", help="Calibration conversations, LLaVA-format JSON.")],
    sparsity: Annotated[
        list[float] | None,
        typer.Option("--sparsity", "-s", help="Target to search; repeat for several. Default: 0.2 to 0.7 in tenths."),
    ] = None,
    scope: Annotated[Scope, typer.Option(help="What the sparsities count.")] = Scope.FFN,
    evaluations: Annotated[
        int, typer.Option("--evaluations", "-n", min=1, help="Configurations scored a target.")
    ] = 200,
    seed: Seed = 0,
    num_levels: Annotated[int, typer.Option(min=2, help="Widths to choose from, a layer.")] = DEFAULT_NUM_LEVELS,
    round_to: Annotated[int, typer.Option(min=1, help="Widths are multiples of this.")] = DEFAULT_ROUND_TO,
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N conversations.")] = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="Leave it to a `lop worker` instead of running it here.")
    ] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Search layer-wise configurations and store every scored sample.

    Interrupted or killed, run the same command again: it reads what was stored and goes on where it stopped.
    """
    from lop.registration import read_conversations
    from lop.searching import search_model, search_request
    from mcts.progress import SearchProgressBar
    from mcts.settings import SearchSettings
    from pruning.levels import LevelGrid

    repository = open_database(database)
    record = repository.get_model(model)
    settings = SearchSettings(
        sparsities=tuple(sparsity or DEFAULT_TARGETS),
        scope=scope,
        num_evaluations=evaluations,
        seed=seed,
        num_levels=num_levels,
        round_to=round_to,
    )
    settings.resolve_targets(record.anatomy, LevelGrid.build(record.anatomy, num_levels=num_levels, round_to=round_to))
    loaded, warning = read_conversations(data, conversations)
    if warning:
        warn(warning)
    if queue:
        queued = repository.add_search(model, search_request(data, conversations, settings))
        if json:
            print_json({"search": queued.id, "status": queued.status})
        else:
            print_line(f"queued search {queued.id}; a running `lop worker` takes it")
        return
    with SearchProgressBar() as progress:
        result = search_model(repository, model, loaded, settings, name=data.name, progress=progress)
    if json:
        print_json({"model": model, "samples": repository.count_samples(model), **result.to_dict()})
        return
    print_table(
        f"best configurations of {model} (calibration data)",
        ["target", "KL to dense", "exact match", "evaluations", "FFN widths"],
        [
            [t.label, t.metrics.kl, t.metrics.accuracy, t.evaluations, " ".join(map(str, t.widths))]
            for t in result.targets
        ],
    )
    print_line(
        f"{repository.count_samples(model)} samples stored; train the predictor with `lop train --model {model}`"
    )
