"""Content addresses: the name of a result is a hash of everything that the result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

Ingredient = str | int | float | bool | None | Sequence["Ingredient"] | Mapping[str, "Ingredient"]


def address_of(kind: str, *ingredients: Ingredient) -> str:
    """The address of a result of one `kind`; it depends on `ingredients` alone.

    Equal ingredients give equal addresses on every machine. The order of a mapping does not matter,
    the order of a sequence does. Floats enter with all their digits.

    Returns:
        64 hexadecimal digits (sha256).

    Raises:
        TypeError: an ingredient is not made of text, numbers, sequences and mappings.
    """
    text = json.dumps([kind, *ingredients], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
