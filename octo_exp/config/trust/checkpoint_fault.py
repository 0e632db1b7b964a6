"""What is wrong with a checkpoint that torch refuses to load."""

import re

# As torch.load(weights_only=True) words it: "Unsupported global: GLOBAL posix.system", "unsupported GLOBAL ...".
_GLOBAL = re.compile(r"(?:[Uu]nsupported global: |unsupported )GLOBAL (\S+)")
_MOST_CHARACTERS = 120


def checkpoint_fault(error: Exception) -> str:
    """What torch.load(weights_only=True) raised -> the rest of a line that begins with the file.

    "names posix.system; it was not run" where the file would have something called, else "is not a readable checkpoint
    (reason)".
    """
    text = str(error).strip()
    named = _GLOBAL.search(text)
    if named:
        return f"names {named[1]}; it was not run"
    reason = text.splitlines()[0][:_MOST_CHARACTERS] if text else type(error).__name__
    return f"is not a readable checkpoint ({reason})"
