"""The effect's own tests again, with address and undefined-behaviour sanitizers in its binary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.ofx_fixtures import BINARY_VARIABLE, REPOSITORY
from tests.hosts.ofx_sanitizers import build_sanitized, runtime_library

# One of each kind of work: pixels, keys, propagation, failure, hostile answers, copies.
CHOSEN = " or ".join(
    [
        "mask_input",
        "pixel_layout",
        "render_window",
        "proxy",
        "any_order",
        "recomputes",
        "in_order",
        "cancelling",
        "aborted",
        "killed_engine",
        "saved_node",
        "copy_that",
        "refused_in_words",
        "hostile",
        "an_abort",
        "cancel_ends",
        "stop_button",
        "own_work",
    ]
)


@pytest.mark.slow
def test_the_effects_tests_pass_with_sanitizers(tmp_path: Path) -> None:
    binary = build_sanitized(tmp_path)
    environment = {
        **os.environ,
        BINARY_VARIABLE: str(binary),
        "LD_PRELOAD": str(runtime_library()),
        # The interpreter leaks by design; what the effect must give back to the host, the host counts.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "tests.hosts.ofx_fixtures"]
    command += ["-p", "tests.hosts.ofx_scripted_engine"]
    command += ["-p", "no:cacheprovider", "-k", CHOSEN]
    command += [
        f"tests/ofx_bridge/{name}.py"
        for name in ("test_effect", "test_hostile_engine", "test_hostile_host", "test_stopping")
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert "Sanitizer" not in done.stdout + done.stderr
    assert "runtime error" not in done.stdout + done.stderr
