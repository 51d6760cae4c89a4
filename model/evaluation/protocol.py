"""What is measured and how, as plain values: the command line shows them without waiting for the network."""

from __future__ import annotations

from typing import Literal

EvaluationProtocol = Literal["davis", "youtube-vos"]

WORKING_SHORT_SIDE = 480
"""Short side at which the network sees a picture (paper section 4: 480p)."""

TABLE_5_RULES = ("first", "previous", "first+previous", "every:5")
"""The memory rules of the paper's table 5; the last is the paper's choice."""
