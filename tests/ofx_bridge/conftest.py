"""The fixtures of the OpenFX tests."""

from tests.hosts.ofx_fixtures import effect_binary, engine, engine_home, host
from tests.hosts.ofx_scripted_engine import scripted

__all__ = ["effect_binary", "engine", "engine_home", "host", "scripted"]
