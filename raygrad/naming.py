"""Finding things by name: registries with a hint at the nearest name, and the user's own `package.module:attribute`."""

import importlib
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from raygrad.errors import BadInput

MOST_NAMES = 20
"""How many known names an error lists."""


def unknown(what: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for a name that is not among `known`, with the nearest one."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    listed = ", ".join(names[:MOST_NAMES]) + (f", … {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    return BadInput(f"unknown {what} {name!r}{hint} (known: {listed or 'none'})")


def load_attribute(reference: str, what: str) -> object:
    """What `package.module:attribute` names. Modules in the current folder are found. Raises BadInput."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise BadInput(f"{what} {reference!r} is not of the form package.module:attribute")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as e:  # the user's code may raise anything
        why = str(e) if isinstance(e, ImportError) else f"{type(e).__name__}: {e}"
        raise BadInput(f"{what} {reference!r}: cannot import {module_name} ({why})") from e
    if not hasattr(module, attribute):
        raise unknown(f"{what} in {module_name}", attribute, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, attribute)
