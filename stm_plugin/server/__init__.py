"""The engine's server: one process per user that both hosts' sides talk to; see ofx_bridge/PROTOCOL.md."""

from stm_plugin.server.main import DEFAULT_IDLE_SECONDS, DEFAULT_REST_SECONDS, ServeOptions, serve
from stm_plugin.server.runtime import EngineRunningError, RuntimeFolderError

__all__ = [
    "DEFAULT_IDLE_SECONDS",
    "DEFAULT_REST_SECONDS",
    "EngineRunningError",
    "RuntimeFolderError",
    "ServeOptions",
    "serve",
]
