"""The door to numba: `njit` whose compiled loops are kept where that is possible, and run where it is not.

numba alone refuses to define a cached function where neither `__pycache__` beside it nor the user's own cache can be
written, and fails on a cache that is damaged or on a full disk. Here such a loop is compiled anew. It also looks at a
loop's own file alone, though what that calls in others is compiled into it: here a change of any of them counts.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import prange
from numba.core.caching import FunctionCache, NullCache

from octo_exp.base.caches import say_once
from octo_exp.base.errors import UserError
from octo_exp.base.homes import temporary_home
from octo_exp.base.lock import hold

__all__ = ["INNER", "OUTER", "njit", "prange"]

# Options of a loop that others call, and of one that is called from Python and shares its work among threads.
INNER: dict[str, Any] = {"cache": True, "error_model": "numpy"}
OUTER: dict[str, Any] = {"cache": True, "error_model": "numpy", "parallel": True}

_WHAT, _REMEDY = "compiled loops", "set NUMBA_CACHE_DIR to a folder that can be written"


def njit(*, cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As numba's own decorator of that name with these options."""

    def decorate(function: Callable[..., Any]) -> Any:
        loop = numba.njit(**options)(function)
        if cache:
            # As `Dispatcher.enable_caching` does.
            loop._cache = _cache_of(function)
        return loop

    return decorate


def _cache_of(function: Callable[..., Any]) -> Any:
    try:
        return Cache(function)
    except RuntimeError:
        # numba has tried NUMBA_CACHE_DIR, the folder beside the file and the user's own.
        folder = temporary_home("numba", what=_WHAT, remedy=_REMEDY)
    if folder is None:
        return NullCache()
    numba.config.CACHE_DIR = str(folder)
    return Cache(function)


def digest_of(folder: Path) -> str:
    """Of all sources in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


@cache
def _sources() -> str:
    return digest_of(Path(__file__).parent)


class Cache(FunctionCache):
    """numba's cache of a function; what it cannot read is compiled anew, what it cannot write is not kept."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), _sources())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function, None where there is none or it is damaged."""
        try:
            return super().load_overload(sig, target_context)
        # Half a file raises from the unpickler or from whatever it calls.
        except Exception as error:
            folder = Path(self.cache_path)
            reason = str(error).split("\n")[0]
            say_once(f"damaged {folder}", "compiled loops in %s are damaged (%s) and are made anew", folder, reason)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function, one process at a time: numba's index is read, changed and written."""
        folder = Path(self.cache_path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with hold(folder, what="cache", wait=lambda owner: None):
                self._save(sig, data)
        except (OSError, UserError) as error:
            say_once(f"unwritable {folder}", "%s cannot be kept in %s (%s); %s", _WHAT, folder, error, _REMEDY)

    def _save(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            raise
        # The index is read before it is written, and may be damaged.
        except Exception:
            self.flush()
            super().save_overload(sig, data)
