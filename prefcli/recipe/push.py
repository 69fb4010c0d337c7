"""push_to_hub: where on the hub a finished run's model goes. Left out: nowhere."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from prefcli.config_base import ConfigBase, Flag


class PushToHub(ConfigBase):
    """The model is sent once it is saved and read back; what fails then costs no weights.

    The token is the environment's (HF_TOKEN) or that of `hf auth login`, and never a recipe's.
    """

    repo_id: Annotated[
        str, Field(pattern=r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$", max_length=96)
    ]
    """As in my-name/zephyr-7b-dpo; made if it is not there."""
    private: Flag = True
    """Refuses a repository that others can read."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """A branch, made if it is not there; left out: main."""
