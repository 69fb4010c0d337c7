"""FSDP2 over CPU processes, set up as accelerate does on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from prefcli.launcher.accelerate_config import FSDP2

_VARIABLES = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": str(FSDP2["fsdp_version"]),
    "FSDP_RESHARD_AFTER_FORWARD": str(FSDP2["fsdp_reshard_after_forward"]).lower(),
    "FSDP_AUTO_WRAP_POLICY": str(FSDP2["fsdp_auto_wrap_policy"]),
    "FSDP_STATE_DICT_TYPE": str(FSDP2["fsdp_state_dict_type"]),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": str(FSDP2["fsdp_cpu_ram_efficient_loading"]).lower(),
    "FSDP_OFFLOAD_PARAMS": str(FSDP2["fsdp_offload_params"]).lower(),
}


@contextmanager
def fsdp2_on_cpus() -> Iterator[None]:
    """Let accelerate, which restricts FSDP to accelerators, shard over CPU processes."""
    real, gathered = AcceleratorState.__init__, Accelerator.get_state_dict

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        real(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    def get_state_dict(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        # The copy from a GPU waits for the collective; on a CPU the tensors are still pending.
        state = gathered(self, model, *args, **kwargs)
        return {
            name: value.wait() if isinstance(value, AsyncCollectiveTensor) else value
            for name, value in state.items()
        }

    with (
        mock.patch.dict(os.environ, _VARIABLES),
        mock.patch.object(AcceleratorState, "__init__", init),
        mock.patch.object(Accelerator, "get_state_dict", get_state_dict),
    ):
        yield
