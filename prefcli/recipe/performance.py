"""performance: how fast the same numbers are reached."""

from __future__ import annotations

from typing import Literal

from prefcli.config_base import ConfigBase


class Performance(ConfigBase):
    """What changes the time that a run takes, and none of its figures.

    Batches of rows of one length are not here: a row without padding costs what its tokens cost, in
    whatever batch, and another order of the rows is another run.
    """

    shared_prefix: Literal["auto", "on", "off"] = "auto"
    """Score rows without padding, a prompt that several share once, and logits only where a label
    is. auto: where it is known to be exact, else trl's own forward with a line that says why; on:
    an error instead."""
