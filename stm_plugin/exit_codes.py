"""How `stm` and `stm_batch.py` end: one number for each kind of end. docs/exit-codes.md is the table.

The numbers are part of the public interface. `nuke/stm_nuke/errors.py`, which imports nothing of the engine,
has the same ones; a test holds all three together.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The end of a command."""

    DONE = 0
    """Everything was done."""
    FAILED = 1
    """Something else, or a fault of the program; the last line says what."""
    USAGE = 2
    """The arguments, the settings or the configuration make no sense, or a lock forbids them."""
    SCRIPT = 3
    """`stm_batch.py`: the script cannot be opened or saved."""
    NODE = 4
    """`stm_batch.py`: there is no such STM node."""
    KEY = 5
    """A keyframe is missing, or its mask cannot be used."""
    PLATE = 6
    """The plate or its colour space cannot be used, or lacks a frame."""
    ENGINE = 7
    """The engine, the device, its memory, or the weights (their licence, too)."""
    STOPPED = 8
    """`stm_batch.py` was stopped, or a job was cancelled. What was finished is kept."""
    STORE = 9
    """The shot store or the mattes cannot be read or written, or a frame is not done."""
    BUSY = 10
    """Another process works on the shot: run again later."""
    FULL = 11
    """A disk is full: free some space and run again."""
    INTERRUPTED = 130
    """`stm` was stopped with Ctrl-C. What was finished is kept."""
