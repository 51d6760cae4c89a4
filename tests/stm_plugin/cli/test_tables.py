"""What the command tells of a shot: settings with meanings, confidence by span, what comes from the store."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from stm_plugin.cli.tables import MEANINGS, confidence_lines, settings_help, settings_table
from stm_plugin.planning.quality import Quality
from stm_plugin.planning.values import State
from stm_plugin.propagation.events import Event, PlanMade
from stm_plugin.settings import Settings, describe_settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.conftest import PlateMaker
from tests.stm_plugin.shot.test_wrong_input import square
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork


def test_every_setting_is_listed_with_value_default_and_meaning() -> None:
    paper = io.StringIO()
    Console(width=200, file=paper).print(settings_table(Settings(working_size=333)))
    shown = paper.getvalue()
    for one in describe_settings():
        assert one.name in shown and one.name in settings_help()
        assert MEANINGS.get(one.name, one.reason)[:30] in settings_help()
    assert "333" in shown and "480" in shown


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
        words = "frames 1002-1004 will be fused anew, none goes through the network: the "
        assert str(found.dirty[0]).startswith(words)
        events: list[Event] = []
        shot.propagate(on_event=events.append)
        (plan,) = (one.plan for one in events if isinstance(one, PlanMade))
        assert not plan.compute_steps
        assert shot.status().qualities.keys() == {1002, 1003, 1004}
