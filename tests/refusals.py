"""What a test says of a refusal whose sentence another test holds: who is named, in one line."""

import re


def assert_names(error: object, words: str) -> None:
    """Assert that an error, or what was written of it, is one line with `words`; " ... " in them is any text."""
    line = str(error).removesuffix("\n")
    assert "\n" not in line, f"more than one line: {line!r}"
    parts = (r"(?<!\w)" * part[:1].isalnum() + re.escape(part) for part in words.split(" ... "))
    assert re.search(".*".join(parts), line), f"{words!r} is not in {line!r}"
