"""A hook of mkdocs: the pages of the site that are not written here are those of the tree's top and of its docstrings.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages, and each room of CONTRIBUTING's table a page of its public
names. Nothing of the package is imported.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_ROW = re.compile(r"^\| (\w+) \| ([^|]+) \| [^|]+\|$", re.MULTILINE)


def rooms() -> dict[str, str]:
    """Return room -> what it is, of CONTRIBUTING's first table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Rooms and arrows")[1].split("\n\n| wing")[0]
    return {name: what for name, what in _ROW.findall(text) if name not in ("room", "__main__")}


def on_config(config: Any) -> Any:
    """Add the reference to the navigation."""
    pages = [{"octo_exp": "reference/index.md"}, *({name: f"reference/{name}.md"} for name in sorted(rooms()))]
    config.nav.append({"Reference": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    made = {page: _moved((ROOT / name).read_text(encoding="utf-8")) for name, page in TOP.items()}
    made["reference/index.md"] = _door()
    for name, what in rooms().items():
        made[f"reference/{name}.md"] = f"# octo_exp.{name}\n\n{what[0].upper()}{what[1:]}.\n\n::: octo_exp.{name}\n"
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to the tree's top lead to their pages."""
    for name, target in TOP.items():
        markdown = markdown.replace(f"](../{name}", f"]({target}").replace(f"](../../{name}", f"](../{target}")
    return markdown


def _moved(text: str) -> str:
    """Return a page of the tree's top as it stands in docs/."""
    for name, target in TOP.items():
        text = text.replace(f"]({name}", f"]({target}")
    return text.replace("](docs/", "](").replace("](LICENSE)", "](https://www.apache.org/licenses/LICENSE-2.0)")


def _door() -> str:
    """Return the page of what `import octo_exp` gives: each name with the docstring of where it lives."""
    text = (ROOT / "octo_exp" / "__init__.py").read_text(encoding="utf-8")
    homes = re.search(r"^_HOMES = (\{.*?^\})", text, re.MULTILINE | re.DOTALL)
    assert homes is not None
    names: dict[str, tuple[str, str]] = ast.literal_eval(homes[1])
    # Its place in the index is that of its room's page.
    options = "show_root_heading: true, skip_local_inventory: true"
    parts = [
        f"::: {home}.{there}\n    options: {{heading: octo_exp.{name}, toc_label: {name}, {options}}}"
        for name, (home, there) in names.items()
    ]
    return (
        "# octo_exp\n\nWhat `import octo_exp` gives; each name is looked up when it is first used.\n\n"
        + "\n\n".join(parts)
    )
