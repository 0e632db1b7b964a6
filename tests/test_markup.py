"""A user's text is printed as it is: brackets in a folder's name or in an error are no markup."""

import ast
from pathlib import Path

import pytest

from octo_exp.runs import results

ROOT = Path(__file__).resolve().parent.parent
FILES = [path for room in ("octo_exp", "sweeps") for path in sorted((ROOT / room).rglob("*.py"))]


def test_no_console_reads_markup():
    """A table's cells and titles follow the console, so that none of them need be escaped."""
    reading = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Console"
        and not any(keyword.arg == "markup" for keyword in node.keywords)
    ]
    assert not reading


@pytest.mark.parametrize("name", ["lr[/1]", "hw=[a,b]", "[bold]x"])
def test_the_table_of_a_run_shows_names_as_they_are(name, tmp_path, capsys):
    folder = tmp_path / name
    content = {"model": name, "data": "digits", "quant": "int8", "seed": 0, "update": name, "update/optimizer": "sgd"}
    results.show(folder, content)
    shown = capsys.readouterr().out
    assert f"results: {folder / results.FILE}" in shown.replace("\n", "")
    assert f"{name} on digits" in shown
    assert f"{name} (sgd)" in shown
