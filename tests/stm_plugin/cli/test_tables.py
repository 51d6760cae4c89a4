"""The command's reports on a shot: settings with meanings, confidence by span, reused results."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from stm_plugin.cli.shot import parse_settings
from stm_plugin.cli.tables import MEANINGS, confidence_lines, settings_help, settings_table
from stm_plugin.errors import SettingsError
from stm_plugin.planning.quality import Quality
from stm_plugin.planning.values import State
from stm_plugin.propagation.events import Event, PlanMade
from stm_plugin.settings import Settings, describe_settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import Window
from tests.conftest import PlateMaker
from tests.stm_plugin.shot.test_wrong_input import square
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork


def shown(settings: Settings) -> str:
    paper = io.StringIO()
    Console(width=200, file=paper).print(settings_table(settings))
    return paper.getvalue()


def test_every_setting_is_listed_with_value_default_and_meaning() -> None:
    table = shown(Settings(working_size=333))
    for one in describe_settings():
        assert one.name in table and one.name in settings_help()
        assert MEANINGS.get(one.name, one.reason)[:30] in settings_help()
    assert "333" in table and "480" in table
    assert set(MEANINGS) <= {one.name for one in describe_settings()}


def test_confidence_is_told_by_span_with_the_worst_frames() -> None:
    qualities = {
        frame: Quality(frame, "", confidence, agreement)
        for frame, confidence, agreement in (
            (1002, 0.9, 0.95),
            (1003, 0.8, 0.4),
            (1005, 0.7, None),
            (1006, 0.6, None),
        )
    }
    lines = confidence_lines(qualities, [1001, 1004])
    assert lines[0] == "frames 1002-1003: confidence 0.85, least on 1003 (0.80, passes agree 0.40)"
    assert lines[1] == "frames 1005-1006: confidence 0.65, least on 1006 (0.60)"
    assert lines[2].startswith("worst frames: 1003 (0.80, passes agree 0.40), 1006 (0.60), 1005")


def test_what_is_still_in_the_store_is_not_said_to_be_recomputed(
    make_plate: PlateMaker, tmp_path: Path
) -> None:
    network = CountingNetwork()
    settings = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene")
    plate = PlateDescription("files", make_plate(frames=range(1001, 1005)))
    with Shot.create(tmp_path / "cup", plate, settings, network=network.factory) as shot:
        shot.add_key(1001, {"cup": square()})
        shot.propagate()
        shot.set_settings(Settings(working_size=48, colour_space="lin_rec709_scene"))
        assert "will be recomputed" in str(shot.status().dirty[0])
        shot.propagate()
        shot.set_settings(settings)
        found = shot.status()
        assert found.network_frames == 0 and found.count(State.STALE) == 3
        words = "frames 1002-1004 will be fused again without the network: the "
        assert str(found.dirty[0]).startswith(words)
        events: list[Event] = []
        shot.propagate(on_event=events.append)
        (plan,) = (one.plan for one in events if isinstance(one, PlanMade))
        assert not plan.compute_steps
        assert shot.status().qualities.keys() == {1002, 1003, 1004}


def test_a_region_is_set_and_taken_back_as_people_write_it() -> None:
    with_region = parse_settings(Settings(), ["region=8,0,64,32"])
    assert with_region.region == Window(8, 0, 64, 32) and "8,0,64,32" in shown(with_region)
    assert parse_settings(with_region, ["region=none"]).region is None
    with pytest.raises(SettingsError, match=r"'1' cannot be read. Write X,Y,WIDTH,HEIGHT"):
        parse_settings(Settings(), ["region=1"])


@pytest.mark.parametrize("text", ["foo=1", "finish.foo=1", "region.x=1", "weights.a.b=1", "=1"])
def test_a_setting_that_does_not_exist_is_refused_with_the_names_of_those_that_do(text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings(Settings(), [text])
    assert repr(text.partition("=")[0]) in str(refused.value)
    assert "finish.radius" in str(refused.value) and "memory_cap" in str(refused.value)


@pytest.mark.parametrize("region", [1, [0, 0, 8, 8], {"x": 0}, {"x": "0", "y": 0, "width": 8, "height": 8}])
def test_a_region_that_is_none_is_refused_in_words(region: object) -> None:
    with pytest.raises(SettingsError, match=r"The setting region .*X,Y,WIDTH,HEIGHT"):
        Settings.from_json({"region": region})
