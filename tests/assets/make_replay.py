# mypy: ignore-errors
# A record: its imports are those of the tree that it is run in, see the docstring of make_replay.
"""Makes `tests/assets/replay`: a database of this version, hundreds of plan requests, and this version's answers.

Made once, by commit bfafe5a, before the house was rebuilt around decisions (issue 12). Later code is held against its
answers, so this script is a record: it is run in a checkout of that commit with `tests/assets/` put in it,
`python -m tests.assets.make_replay`, and takes some eight minutes on two cores. Requests follow from seeds; this
machine is measured for its latencies, so that figures of plans on it differ between two runs.

The database holds:

- `reference`: the reference model with all samples of reference/search/trained.csv, a predictor trained on them, its
  tree search of 200 evaluations a target, small searches by evolution and at random (the latter validated), and
  statistics of every kind.
- `scanned`: the same checkpoint with a one-layer scan on a few conversations and statistics of activations only.
- `llava-1.5-7b-shaped`: a model of LLaVA-1.5-7B's sizes in float16, of which nothing but its ranking is known.
- `large`: the 32 layers of `benchmarks.serving` with its predictor. Of its samples only the one-layer scan is kept.
- three profiles of the machine: one of a few seconds, and the two that `benchmarks.serving` asks with.
"""

import json
import lzma
import shutil
import sqlite3
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lop.compute import load_for_compute
from lop.measuring import StatisticsMeasurer, record_calibration
from lop.registration import register_model
from lop.searching import record_result, search_model
from lop.training import train_model
from lop.validating import validate
from mcts.evaluator import MemoisedEvaluator
from pruning.anatomy_reader import anatomy_of, load_config
from pruning.batches import make_batches
from pruning.checkpoint import load_processor
from pruning.conversations import load_conversations
from pruning.evaluation import ConfigurationEvaluator
from pruning.levels import LevelGrid
from pruning.ranking import Ranking
from pruning.statistics import StatisticsKind

from benchmarks import serving, truth_subjects
from benchmarks.collect import EVALUATIONS, SAMPLES_DIR, SEED, TRAINED_FILE, TRAINED_TARGETS
from benchmarks.stored_samples import read_samples
from benchmarks.subject import REFERENCE, Subject
from mcts.sensitivity import SENSITIVITY_SOURCE, scan_sensitivity
from mcts.settings import SearchMethod, SearchSettings
from mcts.worker import run_search
from policy_model.training import TrainingSettings
from service.sensitivity_scan import ScanFinder
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.assets.replay_files import ANSWERS, DATABASE, FOLDER, SCANS, write_json
from tests.assets.replay_requests import REFERENCE_ID, SCANNED_ID, ask_everything, kind_of

MODEL_FOLDER = REFERENCE / "model"
FEW = 8
FEWER = 4
SMALL_SEARCHES = {
    SearchMethod.EVOLUTION: (0.15, 0.3, 0.45, 0.6, 0.75),
    SearchMethod.RANDOM: (0.1, 0.25, 0.4, 0.55, 0.7),
}
SMALL_EVALUATIONS = 16


def main() -> None:
    """Write the three files."""
    started = time.perf_counter()
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        built, asked = folder / "built.db", folder / "asked.db"
        with open_repository(f"sqlite:///{built}", create=True) as repository:
            _register_everything(repository, folder)
            models = repository.list_models()
            scans = {model.id: ScanFinder(repository).find(model) for model in models}
            write_json(
                SCANS,
                {
                    model_id: {"widths": scan.grid.widths, "table": scan.table.tolist()}
                    for model_id, scan in scans.items()
                    if scan is not None
                },
            )
        _shrink(built)
        DATABASE.write_bytes(lzma.compress(built.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
        _say(started, f"database: {built.stat().st_size} bytes, {DATABASE.stat().st_size} compressed")
        shutil.copyfile(built, asked)
        answers = ask_everything(f"sqlite:///{asked}")
        write_json(ANSWERS, answers)
    _say(started, f"{len(answers)} answers, {ANSWERS.stat().st_size} bytes compressed")
    counts = Counter(
        (
            x["plan"]["method"] if "plan" in x else f"{x['request']['method']}: {x['error']['class']}",
            kind_of(x["request"]),
        )
        for x in answers
    )
    for (method, kind), count in sorted(counts.items()):
        print(f"{method:45} {kind:35} {count}")  # noqa: T201


def _say(started: float, text: str) -> None:
    print(f"{time.perf_counter() - started:6.0f} s  {text}", flush=True)  # noqa: T201


def _register_everything(repository: Repository, folder: Path) -> None:
    started = time.perf_counter()
    _register_reference(repository)
    _say(started, "reference")
    _register_scanned(repository)
    _say(started, "scanned")
    truth_subjects.register_large(repository, folder / "large")
    reference = truth_subjects.TruthSubject(REFERENCE_ID, MODEL_FOLDER, 1.0, is_whole=True)
    truth_subjects.register_machine(repository, reference)
    _say(started, "machine")
    with torch.device("meta"):
        large = serving.large_model()
    anatomy = anatomy_of(large)
    serving.register_large(repository, anatomy)
    serving.measure_device(repository, "for-large", large.config, anatomy)
    config, record = load_config(MODEL_FOLDER), repository.get_model(REFERENCE_ID)
    serving.measure_device(repository, "for-reference", config, record.anatomy)
    _say(started, "large")


def _register_reference(repository: Repository) -> None:
    """The reference model as `benchmarks.predictor` registers it, and what else plans are made from."""
    conversations = load_conversations(REFERENCE / "data" / "calibration.json")
    register_model(repository, REFERENCE_ID, MODEL_FOLDER, conversations)
    record_calibration(repository, conversations, "calibration.json")
    measurer = StatisticsMeasurer(repository, REFERENCE_ID)
    measurer.measure(StatisticsKind.GRADIENTS, conversations, name="few", num_conversations=FEWER)
    measurer.measure(StatisticsKind.ZEROTH_ORDER, conversations, name="few", num_conversations=FEW)
    subject = Subject(REFERENCE, None, fresh=False)
    repository.add_samples([sample for _, sample in read_samples(SAMPLES_DIR / TRAINED_FILE, subject)])
    train_model(repository, REFERENCE_ID, TrainingSettings())
    settings = SearchSettings(sparsities=TRAINED_TARGETS, num_evaluations=EVALUATIONS, seed=SEED)
    # Everything that it asks for is among the samples.
    evaluate = subject.evaluator("calibration")
    result = run_search(repository, REFERENCE_ID, subject.calibration_id, evaluate, settings)
    record_result(repository, REFERENCE_ID, conversations, settings, result, name="calibration.json")
    validation = load_conversations(REFERENCE / "data" / "validation.json")[:FEW]
    for method, sparsities in SMALL_SEARCHES.items():
        settings = SearchSettings(sparsities=sparsities, method=method, num_evaluations=SMALL_EVALUATIONS, seed=SEED)
        few = conversations[:FEW]
        result = search_model(repository, REFERENCE_ID, few, settings, name="few", record=False)
        validated = None
        if method is SearchMethod.RANDOM:
            validated = validate(repository, REFERENCE_ID, validation, result, name="validation.json")
        record_result(repository, REFERENCE_ID, few, settings, result, name="few", validated=validated)


def _register_scanned(repository: Repository) -> None:
    """As `benchmarks.truth_subjects.register_reference`, under an id of its own."""
    conversations = load_conversations(REFERENCE / "data" / "calibration.json")
    model = register_model(repository, SCANNED_ID, MODEL_FOLDER, conversations)
    few = conversations[:FEW]
    scanned = record_calibration(repository, few, "scan")
    ranking = Ranking.from_bytes(repository.get_artifact(model.ranking_sha256).content)
    batches = make_batches(few, load_processor(MODEL_FOLDER))
    evaluator = ConfigurationEvaluator(load_for_compute(MODEL_FOLDER), batches, ranking)
    scan_sensitivity(
        LevelGrid.build(model.anatomy),
        MemoisedEvaluator(repository, model.id, model.ranking_sha256, scanned.id, evaluator, SENSITIVITY_SOURCE),
    )


def _shrink(path: Path) -> None:
    """Paths of this machine go, and the made-up samples that no plan is made from."""
    connection = sqlite3.connect(path)
    connection.execute("UPDATE models SET path = 'nowhere'")
    table = "SELECT number, configuration FROM samples WHERE model_id = ?"
    rows = connection.execute(table, (serving.LARGE,)).fetchall()
    more_than_one = [number for number, configuration in rows if _layers_cut(configuration) > 1]
    connection.executemany("DELETE FROM samples WHERE number = ?", [(number,) for number in more_than_one])
    connection.commit()
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("VACUUM")
    connection.close()


def _layers_cut(configuration: str) -> int:
    widths = json.loads(configuration)["ffn_widths"]
    return sum(width < max(widths) for width in widths)


if __name__ == "__main__":
    main()
