"""Decoder layers fused by torch.compile, one layer at a time ("regional compilation").

An eager decoder layer launches about 100 kernels forward and 180 backward; where a host cannot
launch them as fast as the GPU finishes them, the GPU waits. All layers share one compiled graph,
whose sizes are dynamic, so that rows of any length need no recompilation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prefcli.trl_integration.trl_compat import compiled_call, set_compiled_call

BACKEND = "inductor"


class CompiledLayers:
    """The compiled decoder layers of a model; none if there is no model."""

    def __init__(self, model: PreTrainedModel | None) -> None:
        modules = () if model is None else model.base_model.modules()
        self.layers = [m for m in modules if isinstance(m, GradientCheckpointingLayer)]
        for layer in self.layers:
            layer.compile(backend=BACKEND, dynamic=True)
        self._calls = [compiled_call(layer) for layer in self.layers]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run the layers eagerly, for generation and other calls with different arguments."""
        self.remove()
        try:
            yield
        finally:
            for layer, call in zip(self.layers, self._calls, strict=True):
                set_compiled_call(layer, call)

    def remove(self) -> None:
        """Return to eager layers."""
        for layer in self.layers:
            set_compiled_call(layer, None)
