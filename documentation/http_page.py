"""The reference of the HTTP API as Markdown, from the server's own OpenAPI document."""

from typing import Any

from service.app import create_app
from service.settings import Settings

_METHODS = ("get", "post", "put", "patch", "delete")


def openapi_document() -> dict[str, Any]:
    """What the server answers at /openapi.json. Opens no database."""
    return create_app(Settings(database_url="sqlite:///lop.db")).openapi()


def http_page(document: dict[str, Any] | None = None) -> str:
    """The page: every path with its parameters, body and answers; then every schema."""
    document = document or openapi_document()
    lines = [
        "# HTTP API",
        "",
        document["info"]["description"],
        "",
        "`lop serve` shows the same at `/docs`, to try.",
        "",
    ]
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                lines += _operation(method, path, operations[method])
    lines += ["## Schemas", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    return "\n".join(lines)


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"## `{method.upper()} {path}`", "", _text(operation.get("description") or operation["summary"]), ""]
    if operation.get("parameters"):
        lines += ["| parameter | in | value | meaning |", "|---|---|---|---|"]
        for parameter in operation["parameters"]:
            name = f"`{parameter['name']}`" + (" (required)" if parameter.get("required") else "")
            words = _cell(parameter.get("description", ""))
            lines.append(f"| {name} | {parameter['in']} | {_type(parameter['schema'])} | {words} |")
        lines.append("")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Body, `{kind}`: {_type(content.get('schema', {}))}", ""]
    lines += ["| status | answer | meaning |", "|---|---|---|"]
    for status, answer in sorted(operation["responses"].items()):
        kinds = ", ".join(
            f"{_type(content['schema'])} (`{kind}`)" if content.get("schema") else f"`{kind}`"
            for kind, content in answer.get("content", {}).items()
        )
        lines.append(f"| {status} | {kinds} | {_cell(answer.get('description', ''))} |")
    return [*lines, ""]


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", ""]
    if text := schema.get("description"):
        lines += [_text(text), ""]
    if "properties" not in schema:
        return [*lines, _type(schema), ""]
    lines += ["| field | value | meaning |", "|---|---|---|"]
    required = schema.get("required", [])
    for field, of in schema["properties"].items():
        words = f"`{field}`" + (" (required)" if field in required else "")
        default = f" Default: `{of['default']}`." if of.get("default") is not None else ""
        lines.append(f"| {words} | {_type(of)} | {_cell(of.get('description', ''))}{default} |")
    return [*lines, ""]


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words; others are named, with a link."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(_type(option) for option in schema[word])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    least, most = schema.get("minimum"), schema.get("maximum")
    words = str(schema.get("type", "any value"))
    return words if least is None or most is None else f"{words}, {least} to {most}"


def _text(text: str) -> str:
    """Shapes such as [W][G] are no links."""
    return text.replace("][", "]\\[")


def _cell(text: str) -> str:
    return _text(" ".join(text.split()).replace("|", "\\|"))
