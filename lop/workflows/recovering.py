"""Recovery from files: for `lop recover`, `lop apply --recover` and jobs."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.data.conversations import Conversation
    from pruning.planning.plan import PruningPlan
    from recovery.kinds import Kinds
    from recovery.processes import Processes
    from recovery.recipe import Recipe
    from recovery.recover import Data, Ears


def recovery_data(
    train: Path,
    *,
    selection: Path | None = None,
    validation: Path | None = None,
    recipe: "Recipe",
    on_note: Callable[[str], None] = lambda _text: None,
) -> "Data":
    """The conversations of a recovery; the share of `recipe` of those to train on.

    Without a file to decide by, a part of the training conversations is kept back for that, before a share is taken.

    Raises DatasetError if a file cannot be used, one conversation is in two parts, or nothing could be trained on them.
    """
    from pruning.data.conversations import load_conversations

    named = {path: load_conversations(path) for path in (train, selection, validation) if path is not None}
    return split_data(
        named[train],
        None if selection is None else named[selection],
        None if validation is None else named[validation],
        recipe,
        kinds=_kinds_of(list(named.items())),
        name=str(train),
        on_note=on_note,
    )


def split_data(
    train: "list[Conversation]",
    selection: "list[Conversation] | None",
    validation: "list[Conversation] | None",
    recipe: "Recipe",
    *,
    kinds: "Kinds | None" = None,
    name: str,
    on_note: Callable[[str], None],
) -> "Data":
    """The same, of conversations that are loaded; `name` is what those to train on are called."""
    from recovery.checks import check_trains_something
    from recovery.recover import Data
    from recovery.splitting import check_apart, held_out, sampled, shared_texts

    trained, deciding = (train, selection) if selection is not None else held_out(train)
    if selection is None:
        kept = f"{len(deciding)} of the {len(train)} conversations in {name}"
        on_note(f"no selection part: {kept} are kept back to decide by")
    _note_few(deciding, on_note)
    if validation is None:
        on_note("no validation part: figures are of the selection part, which decided, and so a little optimistic")
    check_apart([("training", trained), ("selection", deciding), ("validation", validation or [])])
    if (count := shared_texts(trained, deciding)) > 0:
        on_note(
            f"{count} texts are asked both in training and in the selection part, which so counts what was learned by "
            "heart as a gain: decide by others, unless facts are to be remembered"
        )
    share = sampled(trained, recipe.fraction, seed=recipe.seed, kinds=kinds)
    check_trains_something(recipe, share)  # before anything is cut or loaded
    return Data(share, deciding, validation or [], kinds)


def _note_few(deciding: "list[Conversation]", on_note: Callable[[str], None]) -> None:
    from recovery.scores import FEW_ANSWERS, LEAST_ANSWERS

    count = sum(len(conversation.turns) for conversation in deciding)
    advice = f"give {FEW_ANSWERS} or more to decide by (--selection FILE)"
    if count < LEAST_ANSWERS:
        on_note(
            f"the selection part's {count} answers cannot show that anything is better than the start, which is what "
            f"will be written: {advice}"
        )
    elif count < FEW_ANSWERS:
        on_note(f"the selection part's {count} answers show only gains on nearly all of them: {advice}")


def _kinds_of(named: "list[tuple[Path, list[Conversation]]]") -> "Kinds | None":
    from recovery.kinds import Kinds, read_kinds

    found = [kinds for path, conversations in named if (kinds := read_kinds(path, conversations)) is not None]
    return Kinds({conversation: own for kinds in found for conversation, own in kinds.of.items()}) if found else None


def recover_folder(
    pruned: Path,
    teacher: Path,
    data: "Data",
    recipe: "Recipe",
    out: Path,
    *,
    cache_bytes: int | None = None,
    ears: "Ears | None" = None,
    processes: "Processes | None" = None,
) -> dict[str, Any]:
    """`recovery.recover.recover` on the device that this process computes on; raises as it does."""
    from lop.workflows.compute import compute_device
    from recovery.processes import ALONE
    from recovery.recover import recover
    from recovery.teacher import DEFAULT_CACHE_BYTES

    bound = DEFAULT_CACHE_BYTES if cache_bytes is None else cache_bytes
    together = processes or ALONE
    device = together.device or compute_device()
    return recover(pruned, teacher, data, recipe, out, device=device, cache_bytes=bound, ears=ears, processes=together)


@contextmanager
def launched_processes() -> "Iterator[Processes]":
    """Those that a launcher started together with this one: `torchrun`, `accelerate launch`. Usually there is none.

    Raises as `recovery.several.Several` and `lop.workflows.compute.wanted_device`.
    """
    from recovery.processes import ALONE, num_launched

    if num_launched() == 1:
        yield ALONE
        return
    from lop.workflows.compute import wanted_device
    from recovery.several import Several

    with Several(wanted_device()) as processes:
        yield processes


def check_launched_alone(what: str) -> None:
    """Raises InputError if a launcher started several processes, which only `lop recover` knows to share work among."""
    from pruning.errors import InputError
    from recovery.processes import num_launched

    if (count := num_launched()) > 1:
        raise InputError(
            f"{what} runs in one process; `lop recover` trains in several",
            values=f"{count} processes, by RANK, WORLD_SIZE and MASTER_ADDR",
            remedy="Run it without the launcher; a pruned checkpoint can be trained by the launched `lop recover`",
        )


def planned_recipe(plan: "PruningPlan | None", given: "Recipe", *, on_note: Callable[[str], None]) -> "Recipe":
    """The recipe to train by: the one that `plan` was chosen for, where it was, with what `given` says besides.

    `on_note` is told that it is the plan's, or what in it is another: of that the plan expects nothing.

    Raises InputError if the plan names a recipe that this version cannot read.
    """
    from pruning.errors import InputError
    from recovery.recipe import Recipe

    step = None if plan is None else plan.planned_training
    if plan is None or step is None:
        return given
    planned = step.settings.get("recipe")
    if not isinstance(planned, dict):
        raise InputError("a plan for after recovery names its recipe", values=f"plan {plan.plan_id}: {step.settings}")
    said = given.model_dump(mode="json")
    changed = {name: value for name, value in said.items() if value != Recipe().model_dump(mode="json")[name]}
    left_out = {"steps", "epochs", "minutes"} if changed.keys() & {"steps", "epochs", "minutes"} else set()
    left_out |= {"learning_rate"} if changed.get("mode", planned.get("mode")) != planned.get("mode") else set()
    recipe = Recipe.of(**{name: value for name, value in planned.items() if name not in left_out} | changed)
    own = recipe.document()
    differing = [name for name in sorted(own.keys() | planned.keys()) if own.get(name) != planned.get(name)]
    if differing:
        now = ", ".join(f"{name} {own.get(name)} in place of {planned.get(name)}" for name in differing)
        on_note(f"plan {plan.plan_id} was chosen for another training, and what it expects is of that one: {now}")
    else:
        on_note(f"the recipe is the one that plan {plan.plan_id} was chosen for: {json.dumps(planned)}")
    return recipe


def check_cut_and_recover(plan: "PruningPlan", dense: Path, recipe: "Recipe", out: Path, cut: Path) -> None:
    """Check, before anything is written, that `plan` can be applied to `cut` and the result be trained into `out`.

    Raises as `recovery.checks.check_planned`, and CheckpointError if `out` exists or there is no room for both folders.
    """
    from pruning.cutting.streaming.place import check_place, check_room
    from recovery.checks import check_planned

    check_place(out, source=dense)
    check_planned(plan, dense, recipe)
    size = plan.achieved.disk_bytes or plan.achieved.parameters * 4
    check_room({out: size} if cut.is_dir() else {cut: size, out: size}, what="cut and recovered checkpoints")


def cut_folder(out: Path, plan: "PruningPlan", dense: Path, *settings: object) -> Path:
    """Where the checkpoint lies that is cut first and then recovered into `out`: beside that, until it is whole.

    Its name says by which plan, of which weights and with which `settings` it was cut: another one's is never taken.
    """
    from pruning.atomic_file import beside
    from pruning.checkpoints.headers import weights_sha256

    what = json.dumps([plan.to_json(), weights_sha256(dense), *map(str, settings)])
    return beside(out, f".cut-{hashlib.sha256(what.encode()).hexdigest()[:12]}")
