"""Content addresses: a name for a result that is made of everything the result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

Ingredient = str | int | float | bool | None | Sequence["Ingredient"] | Mapping[str, "Ingredient"]


def address_of(kind: str, *ingredients: Ingredient) -> str:
    """The address of a result of one `kind` that depends on `ingredients` and on nothing else.

    Equal ingredients give equal addresses on every machine. A mapping's order does not matter, a
    sequence's does. Floats enter with all their digits.

    Returns:
        64 hexadecimal digits (sha256).

    Raises:
        TypeError: an ingredient is not made of text, numbers, sequences and mappings.
    """
    text = json.dumps([kind, *ingredients], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
