"""Settings stand in one place, each with a reason, and are part of the addresses that depend on them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from stm_plugin.errors import SettingsError
from stm_plugin.settings import FinishSettings, Part, Settings, describe_settings
from stm_plugin.windows import Window

PARTS: tuple[Part, ...] = ("picture", "memory", "finish", "export", "identity", "machine")


def test_settings_survive_json() -> None:
    settings = Settings(region=Window(-4, 2, 100, 80), finish=FinishSettings(radius=3), colour_space="ACEScg")
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert Settings.from_json({}) == Settings()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"memory_rule": "first"}, "memory"),
        ({"region": Window(0, 0, 8, 8)}, "picture"),
        ({"finish": FinishSettings(radius=3)}, "finish"),
        ({"channel": "matte.A"}, "export"),
        ({"ram_budget": 0}, "machine"),
    ],
)
def test_a_setting_changes_the_id_of_its_part_and_no_other(change: dict[str, Any], part: Part) -> None:
    before, after = Settings(), replace(Settings(), **change)
    assert [one for one in PARTS if before.id(one) != after.id(one)] == [part]


@pytest.mark.parametrize(
    "values",
    [
        {"memory_rule": "every:0"},
        {"memory_rule": "sometimes"},
        {"memory_cap": 0},
        {"working_size": 3},
        {"working_size": "480"},
        {"precision": "int8"},
        {"device": "tpu"},
        {"colour": "ACEScg"},
        {"region": {"x": 0, "y": 0, "width": 0, "height": 5}},
        {"region": {"x": 0}},
        {"finish": {"radius": 0}},
        {"finish": {"epsilon": float("nan")}},
        {"channel": "a b"},
    ],
)
def test_values_that_cannot_be_used_are_refused_in_words(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"setting|rule|region|channel"):
        Settings.from_json(values)


def test_every_setting_gives_a_reason() -> None:
    described = describe_settings()
    assert len(described) > 15
    assert all(one.reason and one.part in PARTS for one in described)


@pytest.mark.parametrize(("enabled", "edges"), [(True, "guided"), (False, "off")])
def test_the_settings_of_a_shot_of_version_0_1_are_read(enabled: bool, edges: str) -> None:
    old = {"finish": {"enabled": enabled, "radius": 2, "epsilon": 1e-4, "sharpness": 2.0, "sure": 0.02}}
    read = Settings.from_json(old)
    assert read.finish.edges == edges and read.finish.radius == 2 and read.finish.sharpness == 2.0
