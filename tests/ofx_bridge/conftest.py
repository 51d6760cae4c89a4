"""The fixtures of the OpenFX tests."""

from tests.hosts.ofx_fixtures import effect_binary, engine, engine_home, host

__all__ = ["effect_binary", "engine", "engine_home", "host"]
