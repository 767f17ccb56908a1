"""What `make docs` adds to MkDocs: the pages that are made of the code, and benchmarks/README.md.

MkDocs imports this file by its path (`hooks` in mkdocs.yml), from the root of the repository.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "benchmarks"


def on_files(files: Any, *, config: Any) -> Any:
    """Add reference/commands.md, http.md and python.md; and what was measured, with its files and pictures."""
    sys.path.insert(0, str(ROOT))
    from documentation.commands_page import commands_page
    from documentation.http_page import http_page
    from documentation.python_page import python_page

    for name, text in (("commands", commands_page()), ("http", http_page()), ("python", python_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    measured = (MEASURED / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "measured.md", content=measured.replace("](../docs/", "](")))
    for name in sorted(set(re.findall(r"\]\((results/[^)]+)\)", measured))):
        files.append(File.generated(config, name, abs_src_path=str(MEASURED / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to what was measured lead to its page."""
    return markdown.replace("](../benchmarks/README.md)", "](measured.md)")
