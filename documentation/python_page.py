"""The reference of `import lop`: for each public name the place of its docstring, which mkdocstrings renders."""

import lop


def python_page() -> str:
    """The page: one entry of mkdocstrings a name of `lop.__all__`."""
    lines = ["# Python", "", "What `import lop` offers.", ""]
    for name in lop.__all__:
        found = getattr(lop, name)
        lines += [f"## `lop.{name}`", "", f"::: {found.__module__}.{found.__qualname__}", ""]
    return "\n".join(lines)
