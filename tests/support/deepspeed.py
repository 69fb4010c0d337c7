"""DeepSpeed over CPU processes, set up as prefcli's launcher does on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from prefcli.launcher.accelerate_config import accelerate_config
from prefcli.launcher.launch import accelerate_environment
from prefcli.recipe.schema import Recipe


@contextmanager
def deepspeed_on_cpus(recipe: Recipe) -> Iterator[None]:
    """Let accelerate, which restricts DeepSpeed to accelerators, use its backend for CPUs.

    Messages go through gloo: DeepSpeed would compile kernels that share memory.
    """
    import deepspeed

    processes = int(os.environ["WORLD_SIZE"])
    variables = accelerate_environment(accelerate_config(recipe, recipe.launch, processes))
    # As the launcher does: the trainer's arguments set it.
    variables.pop("ACCELERATE_MIXED_PRECISION", None)
    # The processes of the test have their own.
    variables = {name: text for name, text in variables.items() if name.startswith("ACCELERATE_")}
    real = AcceleratorState.__init__

    def init(self: Any, *args: Any, deepspeed_plugin: Any = None, **kwargs: Any) -> None:
        real(self, *args, deepspeed_plugin=deepspeed_plugin, **kwargs)
        if deepspeed_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            deepspeed.comm.init_distributed(dist_backend="gloo")
            PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
            self.distributed_type = DistributedType.DEEPSPEED
            deepspeed_plugin.set_mixed_precision(self._mixed_precision)
            deepspeed_plugin.select(_from_accelerator_state=True)
            self.deepspeed_plugins = deepspeed_plugin

    with (
        mock.patch.dict(os.environ, variables | {"DS_ACCELERATOR": "cpu"}),
        mock.patch.object(AcceleratorState, "__init__", init),
        mock.patch("deepspeed.comm.torch.build_shm_op", return_value=None),
    ):
        yield
