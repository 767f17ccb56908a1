"""Which form of a plan a client gets: proactive negotiation by the Accept header (RFC 9110, section 12.5.1).

`application/json` is a plan of schema 1, as it always was: clients that say nothing, or a wildcard, get it for as long
as schema 1 can say what is meant. Schema 2 has a media type of its own, so it is given to those only who name it.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InputError, PlanSchemaError
from pruning.planning.plan import PruningPlan
from pruning.planning.plan_downgrade import downgrade
from pruning.planning.plan_v1 import PlanV1
from service.conditional import strong_etag


class PlanForm(StrEnum):
    """The media types of a plan. Of two that are wanted alike, the first here is given."""

    SCHEMA_2 = "application/vnd.lop.plan.v2+json"
    SCHEMA_1 = "application/json"

    def etag(self, plan_id: str) -> str:
        """The entity tag of a plan in this form: that of schema 1 is what it was before there was a second one."""
        return strong_etag(plan_id if self is PlanForm.SCHEMA_1 else f"{plan_id}-v2")


class NotAcceptableError(InputError):
    """A plan in none of the forms that the client takes."""


_ASK_FOR_2 = f"Ask for schema 2 with `Accept: {PlanForm.SCHEMA_2}`, or upgrade the client"

_RANGE = re.compile(r"(?:[!#$%&'+.^_`|~0-9a-z-]+/[!#$%&'*+.^_`|~0-9a-z-]+)|\*/\*")
_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
_QUOTED = re.compile(r'"[^"]*"')


def wanted_forms(accept: Sequence[str]) -> tuple[PlanForm, ...]:
    """The forms that a client takes by the lines of its Accept header, the one that it likes best first.

    What is no media range is passed over; where nothing else is left, nothing was said. Raises NotAcceptableError if
    there is no form that it takes.
    """
    ranges = _media_ranges(",".join(accept))
    if not ranges:
        return (PlanForm.SCHEMA_1,)
    of_1 = next((ranges[name] for name in (PlanForm.SCHEMA_1, "application/*", "*/*") if name in ranges), 0.0)
    qualities = {PlanForm.SCHEMA_2: ranges.get(PlanForm.SCHEMA_2, 0.0), PlanForm.SCHEMA_1: of_1}
    wanted = sorted((form for form in PlanForm if qualities[form] > 0), key=lambda form: -qualities[form])
    if not wanted:
        raise NotAcceptableError(
            f"a plan is {PlanForm.SCHEMA_1} (schema 1) or {PlanForm.SCHEMA_2} (schema 2)",
            values=repr(",".join(accept))[:120],
            remedy=_ASK_FOR_2,
        )
    return tuple(wanted)


def _media_ranges(accept: str) -> dict[str, float]:
    """The quality of each media range, whatever other parameters it has; of one that is named twice, the highest."""
    found: dict[str, float] = {}
    # Commas and semicolons in quoted strings separate nothing.
    for member in _QUOTED.sub("quoted", accept).lower().split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        quality = next((x.removeprefix("q=") for x in parameters if x.startswith("q=")), "1")
        if _RANGE.fullmatch(name) and _QUALITY.fullmatch(quality):
            found[name] = max(float(quality), found.get(name, 0.0))
    return found


def in_form(
    plan: PruningPlan, anatomy: ModelAnatomy, wanted: Sequence[PlanForm]
) -> tuple[PlanForm, PruningPlan | PlanV1]:
    """The plan as the client likes it best, in its canonical form; `anatomy` is of its model.

    Raises NotAcceptableError if the client takes schema 1 only, which cannot say what is meant.
    """
    if PlanForm.SCHEMA_2 in wanted[:1]:
        return PlanForm.SCHEMA_2, plan.without_dense(anatomy)
    try:
        return PlanForm.SCHEMA_1, downgrade(plan, anatomy)
    except PlanSchemaError as error:
        if PlanForm.SCHEMA_2 in wanted:
            return PlanForm.SCHEMA_2, plan.without_dense(anatomy)
        raise NotAcceptableError(error.rule, values=error.values, remedy=_ASK_FOR_2) from error
