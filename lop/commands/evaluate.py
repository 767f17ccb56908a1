"""`lop evaluate`: the accuracy of a checkpoint, dense or pruned."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lop.commands.options import Json
from lop.console.console import bar, print_json, print_line, print_table, warn
from lop.console.quality import NO_EXACT_MATCH
from pruning.errors import InputError
from pruning.measuring.metrics import exact_match_tells

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.measuring.metrics import Metrics

NEAR_TIES = 0.002
"""Share of answer tokens at which two ways of computing may choose differently, rounding alone; a generous guess."""


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder, dense or pruned.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Validation conversations, LLaVA-format JSON.")
    ] = None,
    dense: Annotated[
        Path | None, typer.Option(help="Dense checkpoint: also report the KL to it, and the agreement with it.")
    ] = None,
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts generated at once.")] = 64,
    processor_folder: Annotated[
        Path | None,
        typer.Option("--processor", help="Folder of the processor or tokenizer. Default: the checkpoint's own."),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            "--lm-eval", help="Ask lm-evaluation-harness's tasks instead: names or LLaVA-format .json files, by commas."
        ),
    ] = None,
    lmms_eval: Annotated[str | None, typer.Option("--lmms-eval", help="The same of lmms-eval.")] = None,
    harness_python: Annotated[
        Path | None,
        typer.Option(help="Python of the harness's own environment. Default: this one.", envvar="LOP_HARNESS_PYTHON"),
    ] = None,
    json: Json = False,
) -> None:
    """Exact-match accuracy by greedy generation, and negative log-likelihood of the recorded answers.

    With --dense also KL and agreement: the share of answer tokens at which the first choice is the dense model's.

    With --lm-eval or --lmms-eval the questions are a harness's (docs/evaluation.md). With --dense, both models are
    asked the same ones: percent of dense with its 95% interval, and McNemar's test; all of it goes to a file beside the
    checkpoint.
    """
    if (lm_eval or lmms_eval) is not None:
        from lop.commands.evaluate_harness import evaluate_harness

        if data is not None or (lm_eval and lmms_eval):
            raise InputError("one of --data, --lm-eval and --lmms-eval says what is asked", values="several")
        evaluate_harness(
            model,
            dense,
            lm_eval=lm_eval,
            lmms_eval=lmms_eval,
            python=harness_python,
            processor_folder=processor_folder,
            limit=conversations,
            batch_size=batch_size,
            as_json=json,
        )
        return
    if data is None:
        raise InputError("something must be asked", remedy="Give --data, --lm-eval or --lmms-eval")
    from lop.workflows.compute import load_for_compute, warn_of_adapter
    from lop.workflows.registration import read_conversations
    from pruning.checkpoints.finite_weights import check_finite_weights
    from pruning.checkpoints.loading import load_processor
    from pruning.data.batches import make_batches
    from pruning.measuring.evaluation import evaluate_model
    from pruning.measuring.generation import generate_answers

    loaded, _ = read_conversations(data, conversations)
    for folder in filter(None, (model, dense)):
        warn_of_adapter(folder)
    processor, network = load_processor(processor_folder or model), load_for_compute(model)
    reference = load_for_compute(dense) if dense is not None else None
    if reference is not None and vocab_size(reference) != vocab_size(network):
        raise InputError(
            "--dense must be the checkpoint that the pruned one was made from",
            values=f"vocabularies of {vocab_size(reference)} and {vocab_size(network)} tokens",
        )
    with bar("answering") as on_batch:
        report = generate_answers(network, processor, loaded, batch_size=batch_size, on_batch=on_batch)
    batches = make_batches(loaded, processor)
    metrics = evaluate_model(network, batches, reference)
    if not (math.isfinite(metrics.nll) and math.isfinite(metrics.kl)):
        for folder in filter(None, (model, dense)):
            check_finite_weights(folder)
        raise InputError(
            "a model's log-probabilities must be finite numbers",
            values=f"negative log-likelihood {metrics.nll}, KL {metrics.kl}",
            remedy="Its activations overflow its dtype: save it as float32 or bfloat16",
        )
    if abs(metrics.accuracy - report.accuracy) > exact_match_tolerance(metrics):
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
        document |= {"kl": metrics.kl, "agreement": metrics.agreement}
    if json:
        print_json(document)
        return
    shown = {name: value for name, value in document.items() if name != "model"}
    # Where something is exact, the dense model need not be asked whether anything can be.
    if reference is not None and not report.accuracy and not exact_match_tells(evaluate_model(reference, batches)):
        del shown["accuracy"]
    print_table(f"{model} on {data}", list(shown), [list(shown.values())])
    if "accuracy" not in shown:
        print_line(NO_EXACT_MATCH)


def exact_match_tolerance(metrics: "Metrics") -> float:
    """How far exact match by generation may be from that by teacher forcing without a reason to be named.

    An answer is exact if all of its tokens are: the longer it is, the sooner one of them is a near tie that two ways
    of computing the same break differently, and then the whole answer is another.
    """
    return 0.02 + NEAR_TIES * metrics.num_tokens / metrics.num_answers


def vocab_size(model: "PreTrainedModel") -> int:
    """Tokens that the model's head tells apart."""
    return int(model.get_output_embeddings().weight.shape[0])
