"""The engine's server: one process per user for all hosts; see ofx_bridge/PROTOCOL.md."""
