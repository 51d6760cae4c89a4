"""The configuration of a site, a show and a user: layers, locks, licences, and their effect on a shot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm_plugin.configuration import Configuration, configuration, line_of, read_layers
from stm_plugin.errors import ConfigurationError, LicenceError, LockedError
from stm_plugin.planning.values import State
from stm_plugin.settings import FinishSettings, Settings, describe_settings, flat_settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.conftest import PlateMaker
from tests.stm_plugin.command import Command
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

Layers = Callable[..., list[Path]]


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layers:
    """Writes files and names them in STM_CONFIG, the strongest last; the user's own by `user`."""

    def write(*texts: str, user: str = "") -> list[Path]:
        files = []
        for number, text in enumerate(texts):
            files.append(tmp_path / f"layer{number}.toml")
            files[-1].write_text(text, encoding="utf-8")
        monkeypatch.setenv("STM_CONFIG", os.pathsep.join(map(str, files)))
        if user:
            files.append(tmp_path / "user.toml")
            files[-1].write_text(user, encoding="utf-8")
            monkeypatch.setenv("STM_USER_CONFIG", str(files[-1]))
        return files

    return write


# ---- layers ------------------------------------------------------------------------------------


def test_later_files_count_more_and_the_users_own_most(layers: Layers) -> None:
    site, show, user = layers(
        "working_size = 720\ndevice = 'cpu'\n\n[finish]\nedges = 'off'\n",
        "# a show\nworking_size = 540\nfinish.edges = 'learned'\n",
        user="device = 'cuda'",
    )
    found = configuration()
    assert found.settings() == Settings(
        working_size=540, device="cuda", finish=FinishSettings(edges="learned")
    )
    places = {name: one.place for name, one in found.values.items() if one.place is not None}
    assert {name: (place.file, place.line) for name, place in places.items()} == {
        "working_size": (str(show), 2),
        "device": (str(user), 1),
        "finish.edges": (str(show), 3),
    }
    assert found.files == (str(site), str(show), str(user))


def test_every_setting_can_be_said_and_is_read_back(tmp_path: Path) -> None:
    lines = []
    for one in describe_settings():
        value = {"region": [0, -4, 8, 6], "colour_space": "ACEScg", "ocio_config": "ocio://default"}.get(
            one.name, one.default
        )
        lines.append(f"{one.name} = {json.dumps(value)}")
    file = tmp_path / "all.toml"
    file.write_text("\n".join(lines))
    found = read_layers([file])
    assert [found.values[one.name].place for one in describe_settings()].count(None) == 0
    assert flat_settings(found.settings())["region"] == [0, -4, 8, 6]


def test_a_file_that_changes_is_read_again(layers: Layers) -> None:
    (file,) = layers("memory_cap = 5")
    assert configuration()["memory_cap"] == 5
    file.write_text("memory_cap = 11")
    assert configuration()["memory_cap"] == 11


def test_paths_are_seen_from_their_file_and_sizes_have_units(
    layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOW", "/shows/blue")
    layers(
        "weights = 'weights/show.safetensors'\nocio_config = '$SHOW/config.ocio'\ndisk_budget = '3 GiB'\n"
        "cache_folder = '/fast/stm'"
    )
    found = configuration()
    assert found["weights"] == str(tmp_path / "weights" / "show.safetensors")
    assert (found["ocio_config"], found["disk_budget"]) == ("/shows/blue/config.ocio", 3 << 30)
    assert found["cache_folder"] == "/fast/stm"


def test_a_plate_on_the_page_of_review_has_its_shot_in_the_cache_folder(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker
) -> None:
    from stm_plugin.review.opening import open_for_review
    from stm_plugin.shot.propagate import default_shot_folder

    plate = make_plate()
    layers("cache_folder = 'fast'")
    places = [default_shot_folder(tmp_path / name / "matte.####.exr") for name in ("one", "two")]
    assert places[0] != places[1] and {one.parent for one in places} == {tmp_path / "fast"}
    with open_for_review(plate) as shot:
        assert shot.folder.parent == tmp_path / "fast" and shot.folder.name.startswith("plate-")
    with open_for_review(plate) as again:
        assert again.folder == shot.folder
    with open_for_review(plate, tmp_path / "placed") as placed:
        assert placed.folder == tmp_path / "placed.stmshot"
    (tmp_path / "one" / "matte.stmshot").mkdir(parents=True)
    assert default_shot_folder(tmp_path / "one" / "matte.####.exr").parent == tmp_path / "one"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\n\ndevise = 'cpu'", 3, "There is no setting 'devise'. Is device meant?"),
        ("[finish]\nedges = 'guided'\nradios = 3", 3, "Is finish.radius meant?"),
        ("# a\nworking_size = '480'", 2, "working_size is a text, 480; it must be a whole number"),
        ("cryptomatte = 1", 1, "cryptomatte is a whole number, 1; it must be true or false"),
        ("working_size = 3", 1, "Give a value from 16 to 4320"),
        ("\nfinish.radius = 900", 2, "finish.radius is 900"),
        ("finish = { radius = 900 }", 1, "finish.radius is 900"),
        ("memory_rule = 'sometimes'", 1, "The memory rule 'sometimes' is not known"),
        ("region = [1, 2]", 1, "x, y, width, height"),
        ("allowed_licences = 'MIT'", 1, "is a list of texts"),
        ("device = 'cpu'\nlocked = 'device'", 2, "locked is a list of names"),
        ("locked = [\n  'devices',\n]", 1, "There is no setting 'devices'"),
        ("log_level = 'loud'", 1, "Use one of debug, info, warning, error"),
        ("disk_budget = '8 GB of it'", 1, 'a text such as "8 GiB"'),
        ("weights = '$NOT_SET_ANYWHERE/w.safetensors'", 1, "a variable that is not set"),
        ("adapt = true", 1, "stm adapt"),
        ("device = 'cpu'\ndevice = 'mps'", 2, "This is not TOML"),
        ("device = 'cpu'\nworking_size = \n", 2, "This is not TOML"),
        ("finish = 3", 1, "finish is a table"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "stm.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        read_layers([file])
    assert f"{file}, line {line}: " in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        ("a = 1\ndevice = 2", "device", 2),
        ("text = '''\ndevice = 3\n'''\ndevice = 2", "device", 4),
        ("list = [\n 1,\n 2,\n]\n'device' = 2", "device", 5),
        ("[other]\nedges = 1\n[finish]\nedges = 2", "finish.edges", 4),
        ("finish . edges = 2", "finish.edges", 1),
        ("finish = {edges = 2}", "finish.edges", 1),
        ("# device = 1\n  device=2", "device", 2),
    ],
)
def test_a_line_is_found_past_texts_lists_and_tables(text: str, name: str, line: int) -> None:
    assert line_of(text, name) == line


@given(st.lists(st.sampled_from(["x{} = 1", "", "# wanted = 2", "y{} = '''\nwanted = 3\n'''", "z{} = [\n]"])))
def test_the_line_of_a_value_is_the_one_that_says_it(before: list[str]) -> None:
    lines = "\n".join([*(one.format(number) for number, one in enumerate(before)), "wanted = 1"]).split("\n")
    assert line_of("\n".join(lines), "wanted") == len(lines)


@pytest.mark.parametrize("named", ["there.toml", "/nowhere/stm.toml"])
def test_a_file_that_is_not_there_is_an_error(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STM_CONFIG", named)
    with pytest.raises(ConfigurationError, match=r"does not exist|whole path"):
        configuration()


# ---- locks -------------------------------------------------------------------------------------


def test_a_locked_value_is_changed_by_no_later_file(layers: Layers) -> None:
    site, show = layers("locked = ['device']\ndevice = 'cpu'", "memory_cap = 3\ndevice = 'cuda'")
    with pytest.raises(ConfigurationError) as error:
        configuration()
    assert str(error.value).startswith(
        f"{show}, line 2: The setting device is locked to cpu by {site}, line 1."
    )
    show.write_text("device = 'cpu'")
    assert configuration().settings().device == "cpu"


def test_a_built_in_default_can_be_locked_as_it_is(layers: Layers) -> None:
    layers("locked = ['finish.edges']")
    with pytest.raises(LockedError, match=r"finish.edges is locked to learned by .*layer0.toml, line 1"):
        configuration().check_change(Settings(), Settings(finish=FinishSettings(edges="off")))


def make_shot(tmp_path: Path, make_plate: PlateMaker, settings: Settings | None = None) -> Shot:
    """A shot with one key and random weights."""
    network = CountingNetwork()
    plate = make_plate()
    shot = Shot.create(
        tmp_path / "hero.stmshot", PlateDescription("files", plate), settings, network=network.factory
    )
    shot.add_key(1001, plate.replace(".####.exr", ".mask.1001.png"))
    return shot


def test_a_locked_value_cannot_be_changed_in_a_shot(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker
) -> None:
    layers(f"locked = ['working_size']\nworking_size = {WORKING_SIZE}")
    with make_shot(tmp_path, make_plate) as shot:
        assert shot.settings.working_size == WORKING_SIZE
        with pytest.raises(LockedError, match=r"working_size is locked to 32 by .*layer0.toml, line 1"):
            shot.set_settings(replace(shot.settings, working_size=64))
        shot.set_settings(replace(shot.settings, memory_cap=3))
        assert shot.settings.memory_cap == 3
    with pytest.raises(LockedError):
        Shot.create(tmp_path / "two", PlateDescription("files", "x.####.exr"), Settings(working_size=64))


def test_a_lock_that_came_later_stops_the_shot_in_words_and_changes_nothing(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker
) -> None:
    with make_shot(tmp_path, make_plate, Settings(working_size=WORKING_SIZE)) as shot:
        layers("locked = ['working_size']\nworking_size = 48")
        assert shot.settings.working_size == WORKING_SIZE
        with pytest.raises(LockedError, match=r"locked to 48 .* This shot has 32. .*working_size=48"):
            shot.propagate()
        assert any("locked to 48" in words for words in shot.status().advice)
        shot.set_settings(replace(shot.settings, working_size=48))
        assert shot.propagate().computed == 3
        layers("locked = ['working_size']\nworking_size = 64")
        with pytest.raises(LockedError):
            shot.export(None)  # type: ignore[arg-type]  # it is refused before the writer is asked


# ---- what a change of a layer does to a shot -----------------------------------------------------


def test_a_layer_that_changes_changes_no_shot_and_status_says_so(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker
) -> None:
    layers(f"working_size = {WORKING_SIZE}\nmemory_rule = 'every:3'")
    with make_shot(tmp_path, make_plate) as shot:
        shot.propagate()
        layers("working_size = 48\nmemory_rule = 'every:3'\n[finish]\nedges = 'off'")
        shot.refresh()
        status = shot.status()
        assert set(status.states.values()) == {State.KEY, State.DONE}
        said = " ".join(status.advice)
        assert "working_size is 48 by" in said and "this one keeps 32" in said
        assert "finish.edges is off by" in said and "memory_rule" not in said
        assert shot.propagate().computed == 0


def test_settings_of_the_machine_follow_the_layers_unless_they_were_chosen(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker
) -> None:
    layers("disk_budget = 1000")
    with make_shot(tmp_path, make_plate, None) as shot:
        assert shot.settings.disk_budget == 1000
        layers("disk_budget = 2000")
        assert shot.settings.disk_budget == 2000
        shot.set_settings(replace(shot.settings, disk_budget=3000))
        layers("disk_budget = 4000")
        assert shot.settings.disk_budget == 3000
        layers("locked = ['disk_budget']\ndisk_budget = 5000")
        assert shot.settings.disk_budget == 5000
        layers("memory_cap = 4")
        assert shot.settings.disk_budget == 3000, "what was chosen is kept"
        shot.set_settings(replace(shot.settings, disk_budget=Settings().disk_budget))
        layers("disk_budget = 6000")
        assert shot.settings.disk_budget == 6000, "what the layers say is no choice"


def test_a_shot_of_before_keeps_the_machine_settings_that_it_has(layers: Layers) -> None:
    layers("disk_budget = 1000\nram_budget = 500")
    old = Settings(ram_budget=7)
    assert configuration().on_this_machine(old, None) == Settings(ram_budget=7, disk_budget=1000)


def test_a_shot_that_an_earlier_version_made_opens_as_it_was(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker
) -> None:
    with make_shot(tmp_path, make_plate, Settings(working_size=WORKING_SIZE, disk_budget=3)) as shot:
        before = shot.settings
    file = tmp_path / "hero.stmshot" / "shot.json"
    kept = json.loads(file.read_text())
    later = ("checksum", "configured", "chosen")
    file.write_text(json.dumps({name: kept[name] for name in kept if name not in later}))
    with Shot.open(tmp_path / "hero.stmshot") as shot:
        assert shot.settings == before
        layers("disk_budget = 5\nram_budget = 6\nworking_size = 64")
        assert shot.settings == replace(before, ram_budget=6), "what it had chosen counts more"


# ---- licences ------------------------------------------------------------------------------------


def test_weights_whose_licence_is_not_allowed_are_refused_in_words(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker
) -> None:
    (file,) = layers("# show\nallowed_licences = ['Apache-2.0*', 'studio own']")
    with pytest.raises(LicenceError) as error:
        Shot.create(tmp_path / "hero", PlateDescription("files", make_plate()))
    said = str(error.value)
    assert said.startswith(f"{file}, line 2: The weights stm-lite may not be used: their licence is")
    assert "non-commercial use only" in said and "Allowed licences: Apache-2.0*, studio own." in said
    assert not (tmp_path / "hero.stmshot").exists()


def test_a_shot_whose_weights_were_forbidden_later_gives_no_mattes(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker
) -> None:
    plate = make_plate()
    settings = Settings(working_size=WORKING_SIZE)
    shot = Shot.create(tmp_path / "hero", PlateDescription("files", plate), settings)
    with shot:
        shot.add_key(1001, plate.replace(".####.exr", ".mask.1001.png"))
        layers("allowed_licences = ['free for commercial use*']")
        for ask in (shot.propagate, shot.shapes, lambda: shot.matte(1001), shot.adapt):
            with pytest.raises(LicenceError, match=r"layer0.toml, line 1: The weights stm-lite"):
                ask()
        assert any("stm-lite may not be used" in words for words in shot.status().advice)


def test_learned_edges_are_asked_for_their_licence_too(layers: Layers) -> None:
    layers("allowed_licences = ['NON-COMMERCIAL*']")
    from stm_plugin.shot.opening import check_licences

    check_licences(configuration(), Settings(finish=FinishSettings(edges="guided")))
    with pytest.raises(LicenceError, match="edges-lite"):
        check_licences(configuration(), Settings())


# ---- the server --------------------------------------------------------------------------------


def test_a_host_learns_what_is_locked_and_cannot_change_it(layers: Layers, tmp_path: Path) -> None:
    from stm_plugin.protocol import PushedGeometry, error_header
    from stm_plugin.server.shot_service import EngineBackend

    (file,) = layers("locked = ['working_size']\nworking_size = 96\nmemory_cap = 7")
    backend = EngineBackend()
    described = backend.information().settings
    reason = f"The setting working_size is locked to 96 by {file}, line 1."
    assert described["working_size"] == {"default": 96, "type": "integer", "locked": reason}
    assert described["memory_cap"]["default"] == 7 and described["memory_cap"]["locked"] is None
    plate = PushedGeometry(frames=(1, 3), display_window=(0, 0, 64, 48))
    with pytest.raises(LockedError) as error:
        backend.create(tmp_path / "no.stmshot", plate, {"working_size": 480}, ())
    assert error_header(error.value)["code"] == "settings" and reason in error_header(error.value)["text"]
    shot = backend.create(tmp_path / "yes.stmshot", plate, {}, ())
    assert shot.settings()["working_size"] == 96 and shot.settings()["memory_cap"] == 7
    with pytest.raises(LockedError, match=r"layer0.toml, line 1"):
        shot.set_settings({"working_size": 480})
    with pytest.raises(LockedError):
        shot.describe(None, {"working_size": 480})
    assert shot.settings()["working_size"] == 96
    shot.close()


# ---- the command -----------------------------------------------------------------------------------


def test_stm_config_prints_every_value_with_its_origin_and_locks(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker, stm: Command
) -> None:
    site, show = layers("locked = ['device']\ndevice = 'cpu'", "\nworking_size = 64")
    said = stm("config")
    assert said.code == 0, said.err
    rows = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    assert set(Configuration().values) <= set(rows)
    assert f"{site}, line 2; locked by {site}, line 1" in rows["device"]
    assert f"64     {show}, line 2".split() == rows["working_size"].split()[1:]
    assert stm("shot", "new", tmp_path / "hero", make_plate(), "--set", "working_size=48").code == 0
    found = json.loads(stm("config", "--shot", tmp_path / "hero", "--json").out)
    values: dict[str, dict[str, Any]] = {one["name"]: one for one in found["values"]}
    assert values["working_size"]["layer"] == "shot" and values["working_size"]["value"] == 48
    assert values["device"]["lock"] == {"file": str(site), "line": 1}
    assert found["files"] == [str(site), str(show)]


def test_a_precision_of_auto_is_chosen_when_a_shot_is_made_and_kept_also_under_a_lock(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker, stm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = "stm_plugin.propagation.memory_forecast.has_fast_bfloat16"
    monkeypatch.setattr(fast, lambda: True)
    plate = make_plate(frames=range(1001, 1003))
    (site,) = layers("locked = ['precision']\ndevice = 'cpu'\nworking_size = 64")
    mask = plate.replace(".####.exr", ".mask.1001.png")
    words = ("propagate", plate, "--key", f"1001={mask}", "--out", tmp_path / "m.####.exr", "--json")
    assert stm(*words).code == 0
    kept = json.loads((tmp_path / "m.stmshot" / "shot.json").read_text())
    assert kept["settings"]["precision"] == "bfloat16"
    monkeypatch.setattr(fast, lambda: False)  # another machine
    again = stm(*words)
    assert again.code == 0 and json.loads(again.out)["computed"] == 0
    assert "Nothing has changed" in stm("shot", "set", tmp_path / "m.stmshot", "precision=auto").out
    with Shot.open(tmp_path / "m.stmshot") as shot:
        assert shot.settings.precision == "bfloat16"
        assert not any("precision" in one for one in shot.status().advice)
        with pytest.raises(LockedError, match=f"precision is locked to auto by {site}, line 1"):
            shot.set_settings(replace(shot.settings, precision="float32"))


def test_the_command_line_cannot_change_a_locked_value_and_names_the_file(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker, stm: Command
) -> None:
    plate = make_plate()
    (site,) = layers("locked = ['precision']")
    mask = plate.replace(".####.exr", ".mask.1001.png")
    words = ("propagate", plate, "--key", f"1001={mask}", "--out", tmp_path / "out" / "m.####.exr")
    said = stm(*words, "--precision", "float16")
    assert said.code != 0
    assert f"The setting precision is locked to auto by {site}, line 1." in said.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_shots_that_nobody_places_are_kept_in_the_cache_folder(
    layers: Layers, tmp_path: Path, make_plate: PlateMaker, stm: Command
) -> None:
    plate = make_plate(frames=range(1001, 1003))
    layers(f"cache_folder = '{tmp_path / 'cache'}'\nworking_size = 64")
    mask = plate.replace(".####.exr", ".mask.1001.png")
    words = ("propagate", plate, "--key", f"1001={mask}", "--out", tmp_path / "out" / "m.####.exr")
    assert stm(*words).code == 0
    (store,) = (tmp_path / "cache").iterdir()
    assert store.name.startswith("m-") and not list((tmp_path / "out").glob("*.stmshot"))
    kept = json.loads((store / "shot.json").read_text())
    assert kept["settings"]["working_size"] == 64 and kept["configured"] == {"working_size": 64}
    layers(f"cache_folder = '{tmp_path / 'cache'}'\nworking_size = 80")
    said = stm(*words)
    assert said.code == 0 and "0 computed" in said.out, "the shot keeps what it was made with"
