"""What `lop search --after-recovery` adds to a search: its options, and what it shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lop.console.console import print_line, print_table, stderr, warn
from pruning.errors import InputError

if TYPE_CHECKING:
    from lop.workflows.after_recovery import AfterRecovery
    from mcts.settings import SearchSettings
    from pruning.data.conversations import Conversation
    from recovery.recipe import Recipe
    from recovery.recover import Data
    from storage.contract import Repository
    from storage.records import ModelRecord

PANEL = "After recovery"


@dataclass(frozen=True)
class RecoveredSearch:
    """How finalists are to be recovered, checked: what `lop search` was given."""

    recipe: "Recipe"
    data: "Data"
    minutes: float
    finalists: int
    names: dict[str, str]

    def run(
        self,
        repository: "Repository",
        model: str,
        conversations: "list[Conversation]",
        settings: "SearchSettings",
    ) -> "AfterRecovery":
        """Recover finalists of the search that was just run, and keep what is best for plans."""
        from lop.console.recovery_progress import recovery_progress
        from lop.workflows.after_recovery import record_after_recovery, recover_finalists

        def tell(done: int, total: int, label: str) -> None:
            stderr().print(f"recovering a finalist of {label}; {done} of {total} are recovered", markup=False)

        with recovery_progress() as ears:
            found = recover_finalists(
                repository,
                model,
                conversations,
                settings,
                self.data,
                self.recipe,
                minutes=self.minutes,
                names=self.names,
                count=self.finalists,
                ears=ears,
                on_recovery=tell,
            )
        record_after_recovery(repository, model, settings, self.recipe, found)
        return found


def recovered_search(
    model: "ModelRecord",
    settings: "SearchSettings",
    *,
    recipe: str | None,
    budget: float | None,
    finalists: int,
    data: Path,
    train: Path | None,
    selection: Path | None,
    validation: Path | None,
) -> RecoveredSearch | None:
    """What the options say, checked before anything is searched; None without a recipe.

    Raises InputError, DatasetError: options that do not go together, a recipe or conversations that cannot be used.
    """
    from lop.workflows.after_recovery import check_recoverable, read_recipe
    from lop.workflows.recovering import recovery_data

    if recipe is None:
        given = {"--budget": budget, "--recovery-data": train, "--selection": selection}
        if alone := [name for name, value in given.items() if value is not None]:
            raise InputError("finalists are recovered by a recipe", values=alone[0], remedy="Give --after-recovery")
        return None
    if budget is None:
        raise InputError(
            "recoveries are given a number of minutes", values="--after-recovery alone", remedy="Give --budget MINUTES"
        )
    read = read_recipe(recipe)
    check_recoverable(model, settings, read)
    source = train or data
    parts = recovery_data(source, selection=selection, validation=validation, recipe=read, on_note=warn)
    names = {
        "selection": f"kept back from {source.name}" if selection is None else selection.name,
        "validation": "" if validation is None else validation.name,
    }
    return RecoveredSearch(read, parts, budget, finalists, names)


def show_after_recovery(model: str, space: str, found: "AfterRecovery") -> None:
    """What every recovered finalist was and is worth, what is best now, and whether the order before told it."""
    rows: list[list[Any]] = []
    for target in found.targets:
        for number, finalist in enumerate(target.finalists):
            after = finalist.after.get("selection")
            judged = finalist.after.get("validation")
            rows.append(
                [
                    target.target.label,
                    number + 1,
                    f"{finalist.before.kl:.3g}",
                    "-" if after is None else f"{after.kl:.3g}",
                    "-" if after is None else f"{after.accuracy:.1%}",
                    "-" if finalist.expected_kl is None else f"{finalist.expected_kl:.3g}",
                    "-" if judged is None else f"{judged.kl:.3g}",
                    "chosen" if target.best == number else "",
                ]
            )
    columns = ["target", "rank before", "KL before", "KL after", "exact", "expected KL", "validation KL", ""]
    print_table(f"finalists of {model} after recovery ({found.seconds / 60:.1f} minutes)", columns, rows)
    for target in found.targets:
        if target.best is None:
            print_line(f"{target.target.label}: nothing was recovered in these minutes; give more with --budget")
        elif len(target.recovered) > 1:
            same = "is" if target.best == 0 else "is NOT"
            print_line(f"{target.target.label}: the best before recovery {same} the best after")
    for values in found.values:
        if values["ridge"] is None:
            print_line(f"features predict no better than the order before ({values['points']} points left out in turn)")
        else:
            print_line(
                f"features help: log KL is predicted to within {values['error']:.2g} instead of "
                f"{values['error_of_order_before']:.2g} ({values['points']} points left out in turn)"
            )
    print_line(f"plans: `lop plan --model {model}{space} --after-recovery`; then `lop apply --recover DATA`")
