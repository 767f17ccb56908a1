"""`lop evaluate`: the accuracy of a checkpoint, dense or pruned."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lop.commands.options import Json
from lop.console import bar, print_json, print_table, warn
from pruning.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder, dense or pruned.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Validation conversations, LLaVA-format JSON.")],
    dense: Annotated[Path | None, typer.Option(help="Dense checkpoint: also report the KL to it.")] = None,
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts generated at once.")] = 64,
    json: Json = False,
) -> None:
    """Exact-match accuracy by greedy generation, and negative log-likelihood of the recorded answers."""
    from lop.compute import load_for_compute, warn_of_adapter
    from lop.registration import read_conversations
    from pruning.batches import make_batches
    from pruning.checkpoint import load_processor
    from pruning.evaluation import evaluate_model
    from pruning.generation import generate_answers

    loaded, _ = read_conversations(data, conversations)
    for folder in filter(None, (model, dense)):
        warn_of_adapter(folder)
    processor, network = load_processor(model), load_for_compute(model)
    reference = load_for_compute(dense) if dense is not None else None
    if reference is not None and vocab_size(reference) != vocab_size(network):
        raise InputError(
            "--dense must be the checkpoint that the pruned one was made from",
            values=f"vocabularies of {vocab_size(reference)} and {vocab_size(network)} tokens",
        )
    with bar("answering") as on_batch:
        report = generate_answers(network, processor, loaded, batch_size=batch_size, on_batch=on_batch)
    metrics = evaluate_model(network, make_batches(loaded, processor), reference)
    if abs(metrics.accuracy - report.accuracy) > 0.02:
        warn(
            f"generation is exact for {report.accuracy:.3f} of the answers, but teacher forcing for "
            f"{metrics.accuracy:.3f}: does the chat template end answers as the model was trained to?"
        )
    document = {
        "model": str(model),
        "accuracy": report.accuracy,
        "nll": metrics.nll,
        "answers": report.num_answers,
        "tokens": metrics.num_tokens,
    }
    if dense is not None:
        document["kl"] = metrics.kl
    if json:
        print_json(document)
    else:
        print_table(f"{model} on {data}", list(document)[1:], [list(document.values())[1:]])


def vocab_size(model: "PreTrainedModel") -> int:
    """Tokens that the model's head tells apart."""
    return int(model.get_output_embeddings().weight.shape[0])
