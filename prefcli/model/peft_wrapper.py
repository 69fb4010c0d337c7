"""peft's wrapper around a model with an adapter."""

from __future__ import annotations

from typing import Any

from peft import PeftModel


def base_of(model: Any) -> Any:
    """Return the model in peft's wrapper, with the layers of its adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
