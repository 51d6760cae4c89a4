"""A show's configuration reaches the panel: defaults, and locked values grey with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Path) -> Iterator[Path]:
    """The show's file. Hosts of a show have an engine of their own, which ends with the test."""
    file = tmp_path / "show.toml"
    file.write_text("locked = ['device']\ndevice = 'cpu'\nworking_size = 64\nmemory_rule = 'first'\n")
    monkeypatch.setenv("STM_CONFIG", str(file))
    yield file
    from stm_nuke import session

    session.engine("test").shutdown()
    session.leave_engine()


def test_a_locked_knob_is_grey_with_the_reason_and_new_shots_have_the_shows_defaults(
    nuke: Any, show: Path, comp: Any
) -> None:
    import stm_nuke

    device, size = comp.group["device"], comp.group["working_size"]
    tip = device.tooltip()
    assert device.value() == "auto" and device.enabled()
    stm_nuke.status(comp)
    assert device.value() == "cpu" and not device.enabled()
    reason = f"Locked. The setting device is locked to cpu by {show}, line 1.\n"
    assert device.tooltip() == reason + tip
    assert size.value() == 64 and size.enabled()
    assert comp["memory_rule"] == "first"
    size.setValue(80)
    show.write_text("locked = ['working_size']\nworking_size = 96\n")
    stm_nuke.status(comp)
    assert device.enabled() and device.tooltip() == tip and device.value() == "cpu"
    assert size.value() == 96 and not size.enabled()
    show.write_text("working_size = 48\n")
    stm_nuke.status(comp)
    assert size.value() == 96 and size.enabled(), "a shot that is there keeps what it has"


def test_a_configuration_that_is_wrong_is_told_with_file_and_line(nuke: Any, show: Path, comp: Any) -> None:
    import stm_nuke

    show.write_text("device = 'cpu'\nworking_sise = 3\n")
    with pytest.raises(stm_nuke.StmNodeError, match=r"show.toml, line 2: There is no setting 'working_sise'"):
        stm_nuke.status(comp)
