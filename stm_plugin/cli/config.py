"""`stm config`: every value with where it comes from, and whether it is locked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stm_plugin.cli.as_json import print_json
from stm_plugin.cli.console import output
from stm_plugin.cli.propagate import AsJson
from stm_plugin.cli.tables import MEANINGS
from stm_plugin.settings import describe_settings, flat_settings

if TYPE_CHECKING:
    from stm_plugin.configuration import Place


def config(
    shot: Annotated[Path | None, typer.Option(help="A shot: its own values over the layers'.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print every value of the configuration, where it comes from, and whether it is locked."""
    from stm_plugin.configuration import shown

    found = configuration_json(shot)
    if as_json:
        print_json(found)
        return
    for one in found["values"]:
        lock = "" if one["lock"] is None else f"; locked by {_words(one['lock'])}"
        output.print(
            f"{one['name']:<20} {shown(one['value']):<12} {_origin(one)}{lock}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for words in found["different"]:
        output.print(words, highlight=False, markup=False, soft_wrap=True)
    for file in found["files"] or ["none"]:
        output.print(f"file: {file}", highlight=False, markup=False, soft_wrap=True)
    own = found["user_file"] or "switched off"
    output.print(f"your own file would be: {own}", highlight=False, markup=False, soft_wrap=True)


def configuration_json(folder: Path | None = None) -> dict[str, Any]:
    """All values with their origins; `docs/schemas/config.schema.json` describes it.

    Args:
        folder: a shot, whose own values count more than the layers'.

    Raises:
        ConfigurationError: a file cannot be used.
        StoreError: the shot cannot be read.
    """
    from stm_plugin.configuration import OPTIONS, configuration, configuration_files, user_file

    layers = configuration()
    own: dict[str, Any] = {}
    different: list[str] = []
    if folder is not None:
        from stm_plugin.store.store import ShotStore, with_suffix

        kept = ShotStore.open(with_suffix(folder)).description()
        own = flat_settings(layers.on_this_machine(kept.settings, kept.chosen))
        different = layers.news(kept.settings, kept.configured)
    about = {one.name: MEANINGS.get(one.name, one.reason) for one in describe_settings()}
    about.update((name, one.reason) for name, one in OPTIONS.items())
    values = []
    for name, one in layers.values.items():
        value = own.get(name, one.value)
        layer = "default" if one.place is None else "file"
        if value != one.value:
            layer = "shot"
        values.append(
            {
                "name": name,
                "value": list(value) if isinstance(value, tuple) else value,
                "layer": layer,
                "place": _place_json(one.place) if layer == "file" else None,
                "lock": _place_json(one.lock),
                "meaning": about[name],
            }
        )
    return {
        "values": values,
        "files": [str(path) for path in configuration_files()],
        "user_file": str(user_file() or ""),
        "different": different,
    }


def _place_json(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else {"file": place.file, "line": place.line}


def _origin(one: dict[str, Any]) -> str:
    return {"default": "built in", "shot": "the shot"}.get(one["layer"]) or _words(one["place"])


def _words(place: dict[str, Any]) -> str:
    return f"{place['file']}, line {place['line']}"
