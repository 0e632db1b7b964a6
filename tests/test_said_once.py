"""A sentence of a message is held by one test; the others say what it names, so that rewording it is one edit here."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.refusals import assert_names

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "octo_exp"
# So many words in a row are a sentence of a message; fewer are grammar.
WORDS = 5
# Held by more than one test, for a reason.
SHARED = {
    "is unknown choose one of": "each room's own message; the names that follow are what is held",
    "kind must be one of": "three rooms' own messages; the names that follow are what is held",
    "must be a list of": "two rooms' own messages, of lists of different things",
    "must be a number of": "two rooms' own messages, of different units",
    "must be a whole number": "five rooms' own messages beside the shared one of base",
    "must be at least 1": "three rooms' own messages, and a network's of the tests",
    "No space left on device": "the system's words: tests raise them, and look for them",
    "does not have many workers": "Lightning's warning, which tests filter",
}


def bare(text: str) -> str:
    """A text without what parts its clauses."""
    return re.sub(r"[,;:?^$()]", "", text)


def runs_of_words(text: str) -> Iterator[str]:
    """Each WORDS words in a row, up to where any text may stand; escapes are what they stand for."""
    if text.count(" ") < WORDS - 1:
        return
    for piece in re.split(r"\.\*|\.\.\.", re.sub(r"\\(\W)", r"\1", text)):
        words = bare(piece).split()
        for start in range(len(words) - WORDS + 1):
            yield " ".join(words[start : start + WORDS])


def strings_of(statement: ast.stmt) -> Iterator[str]:
    """Every string of a statement but docstrings."""
    prose = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Expr):
            prose.add(node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.value


@functools.cache
def messages() -> str:
    """The sources, with strings that stand side by side joined."""
    text = "\n".join(path.read_text() for path in sorted(SOURCES.rglob("*.py")))
    return bare(re.sub(r"[\"']\s*\n\s*f?[\"']", "", text))


def held_twice(files: dict[str, str]) -> dict[str, list[str]]:
    """Words of a message -> the tests, and tables of tests, that hold them, where these are two or more."""
    held = defaultdict(set)
    for file, text in files.items():
        for statement in ast.parse(text).body:
            name = getattr(statement, "name", f"line {statement.lineno}")
            for string in strings_of(statement):
                for words in runs_of_words(string):
                    held[words].add(f"{file}, {name}")
    return {words: sorted(names) for words, names in held.items() if len(names) > 1 and words in messages()}


def files_of_tests() -> dict[str, str]:
    """Name -> text, of all but this one that look at what is said."""
    files = (path for path in sorted(TESTS.rglob("*.py")) if path != Path(__file__).resolve())
    texts = {str(path.relative_to(TESTS)): path.read_text() for path in files}
    return {
        name: text for name, text in texts.items() if re.search(r"raises\(|caplog|capsys|capfd|stderr|_names\(", text)
    }


def test_no_sentence_of_a_message_is_held_by_two_tests() -> None:
    twice = held_twice(files_of_tests())
    assert SHARED.keys() <= twice.keys(), "an entry that nothing needs"
    found = {words: names for words, names in twice.items() if words not in SHARED}
    assert not found, f"keep the sentence in one of them, and name things in the others: {found}"


def test_a_second_one_is_found() -> None:
    """However it is written: as a regular expression, in two strings, in a table."""
    sentence = " ".join(("the net has", "no such layer"))
    files = {
        "a.py": f"def test_a():\n    assert '{sentence}' in said\n",
        "b.py": f"CASES = [('x', r'^{sentence[:11]}' r'{sentence[11:]}\\.')]\n",
    }
    assert set().union(*held_twice(files).values()) == {"a.py, test_a", "b.py, line 1"}
    files["b.py"] = files["b.py"].replace(" no ", " .* ")
    assert held_twice(files) == {}


@pytest.mark.parametrize("line", ["rows: got 8", "rows: got 7\nmore", "rows:\ngot 7", "arrows: got 7", "got 7, rows"])
def test_a_line_that_names_another_thing_or_is_two_is_none(line: str) -> None:
    assert_names("error: hw.rows: a whole number, got 7\n", "rows ... got 7")
    with pytest.raises(AssertionError):
        assert_names(line, "rows ... got 7")
