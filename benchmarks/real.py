"""The whole product on a really pretrained model, SmolLM2-135M-Instruct, as a user would run it: through `lop`.

The model answers some 300 prompts itself; a sixth of them is for validation, a sixth for the searches (the first
`--conversations`), the rest for rankings and statistics. Then: `lop model add`, `measure`, three searches, `train`,
`compare` of all methods on validation, at the targets that were searched and at three that were not; the intervals of
predicted plans are held against that; one of these plans is applied, evaluated and exported, and llama.cpp is asked for
next tokens beside PyTorch. All searches may score equally many configurations a target; the one-layer scan of the tree
search counts, shared among its targets.

What it costs, on two cores without AVX-512, where a thousand real tokens of one evaluation take about two seconds and a
conversation has about 75 tokens: an evaluation of 16 conversations 2.4 s; the scan, 30 layers x 4 widths below the
dense one, 121 of them, half of that for layers that are shared; the tree search 5 x 23 more, evolution and random
5 x 48 each: together about 26 minutes. The comparison, 48 conversations x about 80 plans: 10 minutes. Answering,
evaluating with generation, statistics, training, llama.cpp: some minutes each.

Kill it anywhere and run it again: what is finished is kept under benchmarks/.work/real in a folder of these very
settings, searches resume by themselves. `--fresh` forgets what this code or other code found there.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.evaluation_cost import evaluation_cost
from benchmarks.gguf import compare as compare_with_llama_cpp
from benchmarks.gguf import last_logits
from benchmarks.machine import COMMIT_AT_START, RESULTS_DIR, write_results
from benchmarks.real_checkpoint import smollm2
from benchmarks.real_data import CALIBRATION, PROMPTS, SELECTION, VALIDATION, begun_answers, write_split
from benchmarks.real_figures import METHODS, SEARCHES, comparison_figures, expectation_figures, rows_of, seconds_of
from benchmarks.real_picture import draw_real
from benchmarks.steps import Steps, alone_in, say
from mcts.settings import SearchMethod
from pruning.allocators.methods import Method
from pruning.checkpoints.anatomy_reader import read_anatomy

WORK = Path(__file__).parent / ".work" / "real"
SEARCHED = (0.1, 0.2, 0.3, 0.4, 0.5)
UNSEARCHED = (0.15, 0.25, 0.45)
APPLIED = 0.3
"""The sparsity of the predicted plan that is applied, evaluated and exported."""
MODEL_ID = "smollm2-135m"


@dataclass(frozen=True)
class Settings:
    """Everything that the figures depend on, but for the code.

    Attributes:
        evaluations: configurations a target, the scan's share included.
        validation_conversations, gguf_prompts: the first N; None for all.
    """

    prompts: str
    prompts_sha256: str
    num_prompts: int | None
    max_new_tokens: int
    conversations: int
    evaluations: int
    num_levels: int
    validation_conversations: int | None
    evaluate_conversations: int
    gguf_prompts: int
    seed: int

    def key(self) -> str:
        """Names the folder of a run."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


def main(
    prompts: Annotated[Path, typer.Option(help='JSON list of {"id", "prompt", "kind"}.')] = PROMPTS,
    num_prompts: Annotated[int | None, typer.Option(min=6, help="Use only the first N.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the dense model, in tokens.")] = 48,
    conversations: Annotated[int, typer.Option(min=1, help="That searches score on: 0.15 s each, evaluation.")] = 16,
    evaluations: Annotated[int, typer.Option(min=2, help="A target, the scan's share included: 2.4 s each.")] = 48,
    num_levels: Annotated[int, typer.Option(min=2, help="Widths a layer; each adds 30 configurations to scan.")] = 5,
    validation: Annotated[int | None, typer.Option(min=1, help="Conversations to compare on: 12 s each.")] = 48,
    evaluate: Annotated[int, typer.Option(min=1, help="Conversations that lop evaluate answers: 1 s each.")] = 24,
    gguf_prompts: Annotated[int, typer.Option(min=1, help="Next tokens asked of llama.cpp: 0.2 s each.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the searches and of training.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs of these settings found.")] = False,
    results: Annotated[str, typer.Option(help="Name of the files in benchmarks/results.")] = "real",
) -> None:
    """Write results/real.json and real.png."""
    digest = hashlib.sha256(prompts.read_bytes()).hexdigest()
    settings = Settings(
        prompts=prompts.name,
        prompts_sha256=digest,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        conversations=conversations,
        evaluations=evaluations,
        num_levels=num_levels,
        validation_conversations=validation,
        evaluate_conversations=evaluate,
        gguf_prompts=gguf_prompts,
        seed=seed,
    )
    folder = WORK / f"run-{settings.key()}"
    say(f"working in {folder}")
    with alone_in(WORK) as lock:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        steps = Steps(folder / "steps", lock=lock)
        summary, rows = Run(settings, prompts, folder, *smollm2(WORK / "checkpoint"), steps).everything()
    path = write_results(results, summary, rows, earlier=[step.code for step in steps.finished.values()])
    draw_real(rows, RESULTS_DIR / f"{results}.png")
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


class Run:
    """One run of these settings in `folder`, on the bfloat16 checkpoint and its float32 copy."""

    def __init__(self, settings: Settings, prompts: Path, folder: Path, half: Path, wide: Path, steps: Steps) -> None:
        self._settings = settings
        self._prompts = prompts
        self._folder = folder
        self._half = half
        self._wide = wide
        self._steps = steps
        self._database = f"sqlite:///{folder / 'lop.db'}"

    def everything(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The summary and the rows."""
        files = self._answer()
        scan = self._search_and_train(files)
        rows, figures = self._compare(files, scan)
        figures |= self._expectations(rows)
        pruned = self._apply()
        figures |= self._evaluate(files, pruned)
        figures |= self._export(pruned)
        figures |= self._cost(files)
        steps = self._steps.finished
        seconds = {name: step.seconds for name, step in steps.items()}
        summary = {
            **figures,
            "seconds": sum(seconds.values()),
            "seconds_by_step": seconds,
            "steps_of_other_commits": sorted(n for n, step in steps.items() if step.commit != COMMIT_AT_START),
            "settings": asdict(self._settings),
            "holds": {
                "bf16_over_f32_seconds_at_most_1.15": figures["bf16_over_f32_seconds"] <= 1.15,
                "evaluation_over_matmul_at_most_1.2": figures["evaluation_over_matmul"] <= 1.2,
                "gguf_agreement_at_least_0.99": figures["gguf_agreement"] >= 0.99,
            },
        }
        return summary, rows

    def _answer(self) -> dict[str, Path]:
        """The dense model's own answers, in three files."""
        own = self._settings
        out = self._folder / "answers.json"
        command = ["data", "answer", "--model", str(self._half), "--prompts", str(self._prompts), "--out", str(out)]
        command += ["--max-new-tokens", str(own.max_new_tokens)]
        if own.num_prompts is not None:
            command += ["--conversations", str(own.num_prompts)]
        self._steps.lop("answer", *command, makes=out)
        return write_split(out, self._prompts, self._folder)

    def _search_and_train(self, files: dict[str, Path]) -> int:
        """Everything up to the predictor; how many evaluations the scan took."""
        own, steps = self._settings, self._steps
        calibration, where = ["--data", str(files[CALIBRATION])], ["--database", self._database]
        steps.lop("add", "model", "add", MODEL_ID, str(self._half), *calibration, *where)
        steps.lop("measure", "model", "measure", MODEL_ID, *calibration, "--kind", "gradients", *where)
        levels = ["--conversations", str(own.conversations), "--num-levels", str(own.num_levels)]
        selection = ["--model", MODEL_ID, "--data", str(files[SELECTION]), *levels, "--seed", str(own.seed), *where]
        targets = [part for sparsity in SEARCHED for part in ("--sparsity", str(sparsity))]
        scan = 0
        for method in SEARCHES:
            of_each = self._own_evaluations() if method is Method.MCTS else own.evaluations
            command = ["--method", SearchMethod(method.value).value, "--evaluations", str(of_each), *targets]
            found = steps.lop(f"search {method}", "search", *selection, *command)
            scan = scan or found.document["scan_evaluations"]
        steps.lop("train", "train", *selection)
        return scan

    def _own_evaluations(self) -> int:
        """What the tree search may score for each target, beside its share of the scan; one at least."""
        scan = read_anatomy(self._half).num_layers * (self._settings.num_levels - 1) + 1
        return max(1, self._settings.evaluations - -(-scan // len(SEARCHED)))

    def _compare(self, files: dict[str, Path], scan: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        own = self._settings
        command = ["compare", "--model", MODEL_ID, "--data", str(files[VALIDATION]), "--database", self._database]
        if own.validation_conversations is not None:
            command += ["--conversations", str(own.validation_conversations)]
        command += [part for sparsity in (*SEARCHED, *UNSEARCHED) for part in ("--sparsity", str(sparsity))]
        command += [part for method in METHODS for part in ("--method", method.value)]
        plans = self._steps.lop("compare", *command).document["plans"]
        spent = {name: step.seconds for name, step in self._steps.finished.items()}
        share = scan / (scan + self._own_evaluations() * len(SEARCHED))
        rows = rows_of(plans, SEARCHED, seconds_of(spent, share), own.seed)
        return rows, {"scan_evaluations": scan, **comparison_figures(rows, SEARCHED, UNSEARCHED)}

    def _expectations(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Whether the predictor's plans are what it says of them; adds its words to its `rows`."""
        command = ["plan", "--model", MODEL_ID, "--method", Method.LOP.value, "--database", self._database]
        for row in rows:
            if row["method"] == Method.LOP:
                sparsity = f"{row['sparsity']:g}"
                plan = self._steps.lop(f"plan {sparsity}", *command, "--sparsity", sparsity).document
                if plan["plan_id"] != row["plan_id"]:
                    raise RuntimeError(f"lop plan at {sparsity} is another than lop compare measured")
                row["predicted"] = plan["predicted"]
        return expectation_figures(rows)

    def _apply(self) -> Path:
        """The folder of the checkpoint that the predictor's plan leaves."""
        plan, pruned = self._folder / "plan.json", self._folder / "pruned"
        command = ["--model", MODEL_ID, "--sparsity", str(APPLIED), "--method", Method.LOP.value, "--out", str(plan)]
        self._steps.lop("plan", "plan", *command, "--database", self._database)
        command = ["--plan", str(plan), "--model", str(self._half), "--out", str(pruned)]
        self._steps.lop("apply", "apply", *command, makes=pruned)
        return pruned

    def _evaluate(self, files: dict[str, Path], pruned: Path) -> dict[str, Any]:
        data = ["--data", str(files[VALIDATION]), "--conversations", str(self._settings.evaluate_conversations)]
        dense = self._steps.lop("evaluate dense", "evaluate", str(self._half), *data).document
        left = self._steps.lop("evaluate", "evaluate", str(pruned), *data, "--dense", str(self._half)).document
        return {
            "dense_exact_match": dense["accuracy"],
            "pruned_exact_match": left["accuracy"],
            "pruned_kl": left["kl"],
            "pruned_agreement": left.get("agreement"),
            "pruned_sparsity": APPLIED,
        }

    def _export(self, pruned: Path) -> dict[str, Any]:
        file = self._folder / "pruned.f16.gguf"
        command = ["--model", str(pruned), "--out", str(file), "--type", "f16"]
        self._steps.lop("export", "export", "gguf", *command, makes=file)
        count = self._settings.gguf_prompts
        found = self._steps.call(
            "llama.cpp",
            [str(file), str(count)],
            lambda: next_tokens(pruned, file, self._folder / "answers.json", count),
        ).document
        return {"gguf_agreement": found.pop("agreement"), "gguf": found}

    def _cost(self, files: dict[str, Path]) -> dict[str, Any]:
        """What an evaluation costs; on the conversations of the searches."""
        keys = ("bf16_over_f32_seconds", "evaluation_over_matmul")
        data, count = files[SELECTION], self._settings.conversations
        found = self._steps.call(
            "evaluation cost",
            [str(self._half), str(data), str(count)],
            lambda: evaluation_cost(self._half, self._wide, data, num_conversations=count),
        ).document
        return {**{key: found.pop(key) for key in keys}, "evaluation_cost": found}


def next_tokens(pruned: Path, gguf: Path, answers: Path, count: int) -> dict[str, Any]:
    """llama.cpp against PyTorch in float32: the next token after questions, and within their answers."""
    import torch

    from pruning.checkpoints.loading import load_processor, load_pruned
    from pruning.checkpoints.processor import tokenizer_of

    tokenizer = tokenizer_of(load_processor(pruned))
    prompts = []
    for question, begun in begun_answers(json.loads(answers.read_text()))[:count]:
        turn = [{"role": "user", "content": question}]
        prompts.append(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) + begun)
    token_ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    expected = last_logits(load_pruned(pruned, dtype=torch.float32), token_ids)
    return compare_with_llama_cpp(gguf, prompts, token_ids, expected)


if __name__ == "__main__":
    typer.run(main)
