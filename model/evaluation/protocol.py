"""Constants of the measurements, without imports, so that the command line can show them at once."""

from __future__ import annotations

from typing import Literal

EvaluationProtocol = Literal["davis", "youtube-vos"]

WORKING_SHORT_SIDE = 480
"""Short side of pictures for the network (paper section 4: 480p)."""

TABLE_5_RULES = ("first", "previous", "first+previous", "every:5")
"""The memory rules of the paper's table 5; the last is the paper's choice."""
