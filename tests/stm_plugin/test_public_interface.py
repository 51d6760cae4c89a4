"""The public interface for Python: its names, and the example of docs/python.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stm_plugin
from stm_plugin.images.matte import read_matte
from stm_plugin.planning.reasons import NEW_KEY
from tests.conftest import REPOSITORY, PlateMaker


def test_every_public_name_is_there_and_no_other() -> None:
    for name in stm_plugin.__all__:
        assert getattr(stm_plugin, name) is not None
    text = (REPOSITORY / "docs" / "python.md").read_text()
    interface = text.partition("## ")[0]
    assert set(re.findall(r"`(\w+)`", interface)) >= set(stm_plugin.__all__)
    with pytest.raises(AttributeError):
        getattr(stm_plugin, "Nonsense")  # noqa: B009 - mypy would refuse it


@pytest.mark.parametrize(
    "text",
    [
        *("README.md", "docs/nuke-for-artists.md", "docs/openfx-for-artists.md", "docs/review.md"),
        *("nuke/stm_nuke/knobs.py", "ofx_bridge/source/parameters.cpp", "ofx_bridge/EFFECT.md"),
        *("stm_plugin/cli/shot.py", "stm_plugin/review/page/index.html"),
    ],
)
def test_every_document_and_panel_says_in_the_same_words_what_a_new_key_does(text: str) -> None:
    words = (REPOSITORY / text).read_text(encoding="utf-8")
    assert NEW_KEY in re.sub(r"\s+", " ", words)


def test_importing_the_package_loads_nothing_that_computes() -> None:
    program = "import sys, stm_plugin; stm_plugin.StmError; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_the_example_of_the_documentation_runs(
    make_plate: PlateMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_plate()
    (tmp_path / "site.toml").write_text("working_size = 64")
    monkeypatch.setenv("STM_CONFIG", str(tmp_path / "site.toml"))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "python.md").read_text(), re.DOTALL)
    before = (tmp_path / "plate.1001.exr").read_bytes()
    exec(compile(code, "docs/python.md", "exec"), {"__name__": "example"})
    said = capsys.readouterr().out
    assert "3 runs of the network" in said and "will be" in said and "plate.1001.exr" in said
    assert (tmp_path / "plate.1001.exr").read_bytes() == before
    for frame in range(1001, 1005):
        assert read_matte(tmp_path / "matte" / f"matte.{frame}.exr").channels["A"].max() > 0
