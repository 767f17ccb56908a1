"""The same request from a shell and from Python."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from service.plan_forms import PlanForm


def curl(url: str, document: Mapping[str, Any], *, needs_key: bool) -> str:
    """A command for a shell; the key comes from the environment, where one is needed."""
    return _command(
        f"curl -X POST {shlex.quote(f'{url}/v1/plans')}",
        "-H 'Content-Type: application/json'",
        f"-H 'Accept: {PlanForm.SCHEMA_2}'",
        f"-d {shlex.quote(json.dumps(document))}",
        needs_key=needs_key,
    )


def curl_stored(url: str, plan_id: str, *, needs_key: bool) -> str:
    """A command for a shell that fetches a stored plan."""
    return _command(
        f"curl {shlex.quote(f'{url}/v1/plans/{plan_id}')}", f"-H 'Accept: {PlanForm.SCHEMA_2}'", needs_key=needs_key
    )


def python(url: str, document: Mapping[str, Any]) -> str:
    """Code for `lop.Client`, which takes its key from LOP_KEY."""
    arguments = "".join(f"    {name}={value!r},\n" for name, value in document.items())
    return f"import lop\n\nclient = lop.Client({url!r})\nplan = client.plan(\n{arguments})\nprint(plan.to_json())\n"


def python_stored(url: str, plan_id: str) -> str:
    """Code for `lop.Client` that fetches a stored plan."""
    return f"import lop\n\nclient = lop.Client({url!r})\nplan = client.get_plan({plan_id!r})\nprint(plan.to_json())\n"


def _command(first: str, *options: str, needs_key: bool) -> str:
    key = ['-H "Authorization: Bearer $LOP_KEY"'] if needs_key else []
    return " \\\n  ".join([first, *key, *options])
