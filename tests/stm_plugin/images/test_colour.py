"""Colour: one scene gives one picture, in whichever space it is stored."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import PyOpenColorIO as ocio
import pytest

from stm_plugin.errors import ColourError
from stm_plugin.images.colour import (
    BUILT_IN_CONFIG,
    SHOULDER_START,
    ColourConfig,
    ColourTransform,
    find_input_space,
    load_config,
    shoulder,
)
from stm_plugin.images.plate import Plate, PlateFrame
from stm_plugin.windows import FloatArray, Window

EIGHT_BIT_STEP = 1 / 255
LOG_SPACES = ["ARRI LogC4", "ACEScct"]
SCENE_SPACES = ["ACEScg", "ACES2065-1", "Linear Rec.709 (sRGB)", "Linear P3-D65", *LOG_SPACES]

OLD_CONFIG = """
ocio_profile_version: 1
search_path: luts
strictparsing: true
luma: [0.2126, 0.7152, 0.0722]
roles: {{default: raw, scene_linear: linear}}
displays:
  screen:
    - !<View> {{name: Raw, colorspace: raw}}
colorspaces:
  - !<ColorSpace>
    name: linear
    isdata: false
  - !<ColorSpace>
    name: raw
    isdata: true
  - !<ColorSpace>
    name: video
    isdata: false
    to_reference: !<ExponentTransform> {{value: [{gamma}, {gamma}, {gamma}, 1]}}
  - !<ColorSpace>
    name: look
    isdata: false
    to_reference: !<FileTransform> {{src: look.spi1d, interpolation: linear}}
"""


@pytest.fixture(autouse=True)
def no_environment_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCIO", raising=False)


@pytest.fixture(scope="module")
def config() -> ColourConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OCIO", raising=False)
        return load_config()


@pytest.fixture
def scene(rng: np.random.Generator) -> FloatArray:
    """Linear Rec.709 values (32, 32, 3) from deep shadow to sixteen times diffuse white."""
    return np.exp2(rng.uniform(-8, 4, (32, 32, 3))).astype(np.float32)


def stored_as(config: ColourConfig, space: str, scene: FloatArray, kind: type = np.float16) -> FloatArray:
    """The scene's values in another space."""
    values = scene.copy()
    config.ocio.getProcessor("Linear Rec.709 (sRGB)", space).getDefaultCPUProcessor().applyRGB(values)
    return values.astype(kind).astype(np.float32)


def old_config(folder: Path, gamma: float = 2.2, lut_end: float = 1.0) -> Path:
    (folder / "luts").mkdir(parents=True)
    (folder / "luts" / "look.spi1d").write_text(
        f"Version 1\nFrom 0.0 1.0\nLength 3\nComponents 1\n{{\n0.0\n0.3\n{lut_end}\n}}\n"
    )
    path = folder / "config.ocio"
    path.write_text(OLD_CONFIG.format(gamma=gamma))
    return path


def frame_of(path: Path | None, **attributes: object) -> PlateFrame:
    linear = path is None or path.suffix == ".exr"
    spec = oiio.ImageSpec(2, 2, 3, "half" if linear else "uint8")
    for name, value in attributes.items():
        spec.attribute(name, value)
    window = Window(0, 0, 2, 2)
    return PlateFrame(1, path, np.zeros((2, 2, 3), np.float32), window, window, metadata=spec)


@pytest.mark.parametrize("space", ["sRGB - Texture", "sRGB - Display", "srgb_rec709_scene", "Raw"])
def test_srgb_stays_exactly_as_it_is(config: ColourConfig, space: str) -> None:
    steps: FloatArray = np.arange(256, dtype=np.float32) / np.float32(255)
    picture: FloatArray = np.stack([steps, steps[::-1], np.roll(steps, 85)], axis=-1)[None]
    assert np.abs(ColourTransform(config, space).to_display(picture) - picture).max() <= 1e-6


@pytest.mark.parametrize("space", SCENE_SPACES)
def test_one_scene_in_many_spaces_gives_one_picture(
    config: ColourConfig, scene: FloatArray, space: str
) -> None:
    """A half of a log value near 1 is good to 0.3 % of the light (17 stops in one unit, 11 bits).

    A wide-gamut matrix adds six tenths of the brightest channel's error to the others, so that pixels
    whose channels are within two stops stay within 0.3 % of the display for linear files, less than an
    8-bit step, and within twice that for log files.
    """
    truth = ColourTransform(config, "Linear Rec.709 (sRGB)").to_display(scene)
    picture = ColourTransform(config, space).to_display(stored_as(config, space, scene))
    balanced = scene.min(axis=2) > scene.max(axis=2) / 4
    assert balanced.mean() > 0.05
    assert np.abs(picture - truth)[balanced].max() <= EIGHT_BIT_STEP * (2 if space in LOG_SPACES else 1)
    assert np.abs(picture - truth).mean() <= EIGHT_BIT_STEP
    in_floats = ColourTransform(config, space).to_display(stored_as(config, space, scene, np.float32))
    assert np.abs(in_floats - truth)[balanced].max() <= 1e-3


def test_a_scene_linear_plate_and_its_srgb_jpeg_give_the_same_picture_below_the_highlights(
    config: ColourConfig, scene: FloatArray
) -> None:
    dim: FloatArray = (scene / scene.max()).astype(np.float32)  # linear 0 to 1
    srgb = stored_as(config, "sRGB - Texture", dim, np.float32)
    from_jpeg = ColourTransform(config, "sRGB - Texture").to_display(srgb)
    from_linear = ColourTransform(config, "ACEScg").to_display(stored_as(config, "ACEScg", dim, np.float32))
    diffuse = from_jpeg <= SHOULDER_START
    assert diffuse.mean() > 0.9
    assert np.abs(from_linear - from_jpeg)[diffuse].max() <= 1e-3
    assert np.abs(from_linear - from_jpeg).max() <= 0.05 + 1e-3, "white itself is lowered by the shoulder"


def test_highlights_are_compressed_and_not_clipped(config: ColourConfig) -> None:
    stops = np.exp2(np.linspace(-6, 10, 400)).astype(np.float32)
    picture = ColourTransform(config, "Linear Rec.709 (sRGB)").to_display(
        stops.reshape(1, -1, 1).repeat(3, 2)
    )
    values = picture[0, :, 0].astype(np.float64)
    assert np.all(np.diff(values) > 0), "every brighter value stays brighter"
    assert values[-1] < 1
    assert np.interp(1.0, stops, values) == pytest.approx(0.95, abs=2e-3)
    assert np.interp(16.0, stops, values) == pytest.approx(0.996, abs=1e-3)
    around = shoulder(SHOULDER_START + np.array([-1e-6, 0.0, 1e-6]))
    assert np.diff(around) == pytest.approx([1e-6, 1e-6], rel=1e-4), "no kink"


@pytest.mark.parametrize("space", ["ACEScg", "Linear Rec.709 (sRGB)", "ARRI LogC4", "sRGB - Texture"])
def test_nan_inf_and_negative_values_are_safe_and_do_not_spread(config: ColourConfig, space: str) -> None:
    transform = ColourTransform(config, space)
    clean = np.full((200, 300, 3), 0.4, np.float32)
    dirty = clean.copy()
    dirty[0, 0] = np.nan
    dirty[1, 1] = np.inf
    dirty[2, 2] = -np.inf
    dirty[3, 3] = (3e38, 3e38, 3e38)
    dirty[4, 4] = (-5.0, -5.0, -5.0)
    dirty[5, 5, 1] = np.nan
    result = transform.to_display(dirty)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1
    touched = np.zeros(clean.shape[:2], bool)
    touched[range(6), range(6)] = True
    assert np.array_equal(result[~touched], transform.to_display(clean)[~touched])
    assert np.array_equal(result, transform.to_display(dirty)), "deterministic"
    assert np.isnan(dirty[0, 0]).all(), "the plate's own pixels are left alone"
    if space != "ARRI LogC4":
        assert result[1, 1].min() > 0.99
        assert result[3, 3].min() > 0.99
        assert result[2, 2].max() == 0
        assert result[4, 4].max() == 0


def test_the_fast_matrix_equals_opencolorio(config: ColourConfig, scene: FloatArray) -> None:
    transform = ColourTransform(config, "ACES2065-1")
    assert transform._matrix is not None
    fast = transform._converted(scene)
    by_library = scene.copy()
    processor = config.ocio.getProcessor("ACES2065-1", "Linear Rec.709 (sRGB)")
    processor.getDefaultCPUProcessor().applyRGB(by_library)
    assert np.abs(fast - by_library).max() <= 1e-5 * np.abs(by_library).max()


def test_the_id_is_equal_for_equal_conversions_and_differs_otherwise(config: ColourConfig) -> None:
    first = ColourTransform(config, "ACEScg")
    assert ColourTransform(config, "scene_linear").id == first.id, "a role"
    assert ColourTransform(config, "lin_ap1").id == first.id, "an alias"
    assert ColourTransform(load_config(BUILT_IN_CONFIG), "ACEScg").id == first.id
    ids = [ColourTransform(config, space).id for space in [*SCENE_SPACES, "sRGB - Texture", "Camera Rec.709"]]
    assert len(set(ids)) == len(ids)


def test_the_id_is_the_same_in_another_process(config: ColourConfig, repository: Path) -> None:
    code = (
        "from stm_plugin.images.colour import *;"
        "print(ColourTransform(load_config(), 'ARRI LogC4').id, ColourTransform(load_config(), 'ADX10').id)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    here = [ColourTransform(config, space).id for space in ("ARRI LogC4", "ADX10")]
    assert answer.stdout.split() == here


def test_the_id_changes_with_the_contents_of_a_config_and_not_with_its_place(tmp_path: Path) -> None:
    one = load_config(old_config(tmp_path / "one"))
    same = load_config(old_config(tmp_path / "same"))
    gamma = load_config(old_config(tmp_path / "gamma", gamma=2.4))
    lut = load_config(old_config(tmp_path / "lut", lut_end=0.9))
    for space in ("video", "look"):
        assert ColourTransform(one, space).id == ColourTransform(same, space).id
    assert ColourTransform(one, "video").id != ColourTransform(gamma, "video").id
    assert ColourTransform(one, "look").id != ColourTransform(lut, "look").id


def test_an_old_config_without_interchange_roles_works(tmp_path: Path, config: ColourConfig) -> None:
    old = load_config(old_config(tmp_path))
    linear, video = ColourTransform(old, "linear"), ColourTransform(old, "video")
    assert not linear.display_referred
    assert video.display_referred
    ramp = np.linspace(0, 0.75, 30, dtype=np.float32).reshape(1, 10, 3)
    expected = ColourTransform(config, "Linear Rec.709 (sRGB)").to_display(ramp)
    assert np.abs(linear.to_display(ramp) - expected).max() < 1e-4
    assert np.abs(video.to_display(ramp) - ramp).max() < 0.04, "gamma 2.2 is near sRGB"


@pytest.mark.parametrize(
    ("name", "attributes", "expected", "reason"),
    [
        ("p.1.exr", {}, "ACEScg", "scene-linear"),
        ("p.1.exr", {"acesImageContainerFlag": 1}, "ACES2065-1", "ACES container"),
        ("p.1.exr", {"colorInteropID": "lin_rec709_scene"}, "Linear Rec.709 (sRGB)", "colorInteropID"),
        ("p.1.exr", {"oiio:ColorSpace": "ACEScg"}, "ACEScg", "oiio:ColorSpace"),
        ("p.1.exr", {"oiio:ColorSpace": "unheard of"}, "ACEScg", "scene-linear"),
        ("p.1.jpg", {"oiio:ColorSpace": "srgb_rec709_scene"}, "sRGB", "display-referred"),
        ("p.1.png", {"oiio:ColorSpace": "g22_rec709_scene"}, "Gamma 2.2", "oiio:ColorSpace"),
        ("p.mov", {}, "sRGB", "display-referred"),
        ("p.1.cin", {}, "ADX10", "film log"),
        ("p.1.dpx", {"dpx:Transfer": "Printing density"}, "ADX10", "film log"),
        ("p.1.dpx", {"oiio:BitsPerSample": 10}, "ADX10", "10-bit DPX"),
        (None, {}, "ACEScg", "host"),
    ],
)
def test_the_input_space_is_found_from_the_file(
    config: ColourConfig, name: str | None, attributes: dict[str, object], expected: str, reason: str
) -> None:
    found = find_input_space(frame_of(None if name is None else Path(name), **attributes), config)
    assert found.name.startswith(expected)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("primaries", "expected"),
    [
        ((0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290), "Linear Rec.709 (sRGB)"),
        ((0.7347, 0.2653, 0.0, 1.0, 0.0001, -0.077, 0.32168, 0.33767), "ACES2065-1"),
        ((0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767), "ACEScg"),
        ((0.5, 0.3, 0.2, 0.6, 0.2, 0.1, 0.3, 0.3), "ACEScg"),
    ],
)
def test_chromaticities_of_an_exr_are_obeyed(
    config: ColourConfig, tmp_path: Path, primaries: tuple[float, ...], expected: str
) -> None:
    spec = oiio.ImageSpec(4, 4, 3, "half")
    spec.attribute("chromaticities", oiio.TypeDesc("float[8]"), primaries)
    output = oiio.ImageOutput.create("p.exr")
    assert output is not None
    assert output.open(str(tmp_path / "p.1.exr"), spec)
    assert output.write_image(np.zeros((4, 4, 3), np.float32))
    assert output.close()
    assert find_input_space(Plate.open(tmp_path / "p.1.exr").read(1), config).name == expected


def test_a_stated_space_wins_and_an_unknown_one_names_its_neighbours(config: ColourConfig) -> None:
    frame = frame_of(Path("p.1.exr"), acesImageContainerFlag=1)
    stated = find_input_space(frame, config, "lin_rec709")
    assert (stated.name, stated.reason) == ("Linear Rec.709 (sRGB)", "stated")
    with pytest.raises(ColourError, match=r"no colour space 'ACESgc'\. Near it are .*ACEScg"):
        find_input_space(frame, config, "ACESgc")
    with pytest.raises(ColourError, match=r"Near it are .*ARRI LogC4"):
        ColourTransform(config, "logc4")
    with pytest.raises(ColourError, match=r"'zzz'\. It has .*ACEScg"):
        config.resolve("zzz")


def test_the_rules_of_a_studio_config_are_obeyed(config: ColourConfig, tmp_path: Path) -> None:
    studio = copy.deepcopy(config.ocio)
    rules = ocio.FileRules()
    rules.insertRule(0, "plates", "Linear Rec.709 (sRGB)", "*plates*", "exr")
    rules.setDefaultRuleColorSpace("ACES2065-1")
    studio.setFileRules(rules)
    path = tmp_path / "studio.ocio"
    path.write_text(studio.serialize())
    loaded = load_config(path)
    by_rule = find_input_space(frame_of(Path("/show/plates/p.1.exr")), loaded)
    assert (by_rule.name, "plates" in by_rule.reason) == ("Linear Rec.709 (sRGB)", True)
    assert find_input_space(frame_of(Path("/show/other/p.1.exr")), loaded).name == "ACEScg"


def test_given_config_beats_the_environment_beats_the_built_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, environment = old_config(tmp_path / "given"), old_config(tmp_path / "environment")
    assert load_config().built_in
    monkeypatch.setenv("OCIO", str(environment))
    assert load_config().source == f"$OCIO: {environment}"
    assert load_config(given).source == f"given: {given}"
    assert load_config(given).spaces == ("linear", "raw", "video", "look")
    assert load_config(given).roles["scene_linear"] == "linear"


def test_configs_that_cannot_be_used_are_named_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ColourError, match=r"nowhere\.ocio: The colour config \(given\) does not exist"):
        load_config(tmp_path / "nowhere.ocio")
    broken = tmp_path / "broken.ocio"
    broken.write_text("ocio_profile_version: 2\ncolorspaces: [")
    monkeypatch.setenv("OCIO", str(broken))
    with pytest.raises(ColourError, match=r"broken\.ocio: The colour config \(\$OCIO\) cannot be used"):
        load_config()
    with pytest.raises(ColourError, match="cannot be used"):
        load_config("ocio://no-such-config")


INVALID_CONFIG = """\
ocio_profile_version: 1
strictparsing: true
roles:
  default: Linear
  scene_linear: Linear
  color_picking: sRGB
displays:
  Screen:
    - !<View> {name: Film, colorspace: sRGB}
active_displays: [Screen-1]
active_views: [Film]
colorspaces:
  - !<ColorSpace>
    name: Linear
    bitdepth: 32f
  - !<ColorSpace>
    name: sRGB
    bitdepth: 32f
    to_reference: !<ExponentTransform> {value: [2.2, 2.2, 2.2, 1]}
  - !<ColorSpace>
    name: Monitor 2015
    bitdepth: 32f
    to_reference: !<ColorSpaceTransform> {src: sRGB, dst: Nowhere}
"""
"""Faults of configs that hosts ship: a display that is not there, a space that names a missing one."""


def test_a_config_that_does_not_validate_converts_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "invalid.ocio"
    file.write_text(INVALID_CONFIG)
    with pytest.raises(ocio.Exception):
        ocio.Config.CreateFromFile(str(file)).validate()
    config = load_config(file)
    grey = np.full((1, 1, 3), 0.18, np.float32)
    assert ColourTransform(config, "Linear").to_display(grey)[0, 0, 0] == pytest.approx(0.46135, abs=1e-4)
    shown = np.full((1, 1, 3), 0.5, np.float32)
    assert ColourTransform(config, "sRGB").to_display(shown)[0, 0, 0] == pytest.approx(0.5, abs=0.01)
    assert config.resolve("srgb_rec709_scene") == "sRGB"


def test_what_a_config_lacks_is_refused_by_name_and_only_where_it_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "invalid.ocio"
    file.write_text(INVALID_CONFIG)
    config = load_config(file)
    with pytest.raises(ColourError, match="Nowhere"):
        ColourTransform(config, "Monitor 2015")
    with pytest.raises(ColourError, match="no colour space 'Cineon'"):
        ColourTransform(config, "Cineon")
    file.write_text(INVALID_CONFIG.replace("scene_linear", "other_role"))
    with pytest.raises(ColourError, match="scene_linear"):
        ColourTransform(load_config(file), "Linear")


def test_film_log_without_a_film_log_space_asks_for_the_space(tmp_path: Path) -> None:
    old = load_config(old_config(tmp_path))
    with pytest.raises(ColourError, match=r"frame 1, p\.1\.cin: .*film log.*State the plate's colour space"):
        find_input_space(frame_of(Path("p.1.cin")), old)
    with pytest.raises(ColourError, match="no sRGB colour space"):
        find_input_space(frame_of(Path("p.1.jpg")), old)


def test_only_float_pictures_of_three_channels_are_taken(config: ColourConfig) -> None:
    with pytest.raises(ValueError, match="float32"):
        ColourTransform(config, "ACEScg").to_display(np.zeros((4, 4, 4), np.float32))


@pytest.mark.parametrize("space", ["sRGB - Texture", "Gamma 2.4 Rec.709 - Texture", *SCENE_SPACES])
def test_colours_come_back_from_linear_light_as_they_were(space: str) -> None:
    transform = ColourTransform(load_config(), space)
    picture = np.random.default_rng(5).random((6, 7, 3), np.float32)
    linear = transform.to_linear(picture)
    assert np.abs(transform.from_linear(linear) - picture).max() < 2e-4
    if space in SCENE_SPACES and space not in LOG_SPACES:
        assert (linear == picture).all(), "what is linear stays as it is"
    else:
        dark = transform.to_linear(np.full((1, 1, 3), 0.3, np.float32))
        assert abs(float(dark.mean()) - 0.3) > 0.05
