"""The same request from a shell and from Python."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from service.plan_forms import PlanForm


def curl(url: str, document: Mapping[str, Any], *, needs_key: bool) -> str:
    """A command for a shell; the key comes from the environment, where one is needed."""
    lines = [f"curl -X POST {shlex.quote(f'{url}/v1/plans')}"]
    if needs_key:
        lines.append('  -H "Authorization: Bearer $LOP_KEY"')
    lines += [
        "  -H 'Content-Type: application/json'",
        f"  -H 'Accept: {PlanForm.SCHEMA_2}'",
        f"  -d {shlex.quote(json.dumps(document))}",
    ]
    return " \\\n".join(lines)


def python(url: str, document: Mapping[str, Any]) -> str:
    """Code for `lop.Client`, which takes its key from LOP_KEY."""
    arguments = "".join(f"    {name}={value!r},\n" for name, value in document.items())
    return f"import lop\n\nclient = lop.Client({url!r})\nplan = client.plan(\n{arguments})\nprint(plan.to_json())\n"
