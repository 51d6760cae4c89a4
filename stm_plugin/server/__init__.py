"""The engine's server: one process per user that both hosts' sides talk to; see ofx_bridge/PROTOCOL.md."""
