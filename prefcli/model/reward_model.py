"""A reward model: a sequence classifier with one label, loaded like every other model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from prefcli.errors import Problem, RecipeError
from prefcli.model.base_model import is_adapter
from prefcli.model.loading import absolute_name, check_weights_exist, loading
from prefcli.model.remote_code import from_pretrained_kwargs
from prefcli.model.weight_files import check_finite, check_loading_info
from prefcli.recipe.sections import Model

_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Padded tokens of a batch."""


def load_reward_model(options: Model, dtype: torch.dtype, where: str) -> PreTrainedModel:
    """Load a classifier on the CPU in `dtype`. Raises RecipeError unless it gives one score."""
    name = options.name_or_path
    with loading(options, "config", where):
        if is_adapter(name, options.revision):
            raise RecipeError(
                Problem(
                    f"{name} is an adapter; a reward model is a full model",
                    path=f"{where}.name_or_path",
                    hint="merge it into its base first",
                    code="MDL008",
                )
            )
        config = AutoConfig.from_pretrained(name, **from_pretrained_kwargs(options))
    check_weights_exist(options, where)
    if config.num_labels != 1:
        raise RecipeError(
            Problem(
                f"{name} has {config.num_labels} labels; a reward model has one",
                path=f"{where}.name_or_path",
                hint="name a model for sequence classification with num_labels 1",
                code="MDL040",
            )
        )
    with loading(options, "model", where):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            absolute_name(name),
            **from_pretrained_kwargs(options),
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # check_loading_info refuses them, by name
            output_loading_info=True,
        )
    check_loading_info(type(model).__name__, info, name, where)
    check_finite(model.state_dict().items(), name, where)
    return model.eval()


@torch.no_grad()
def rewards(model: PreTrainedModel, rows: Sequence[list[int]]) -> list[float]:
    """Return the score of each sequence of token ids, in their order.

    The classifier reads its padding token from its config; without one, it takes single rows only.
    """
    pad = model.config.get_text_config().pad_token_id
    limit = 1 if pad is None else _TOKENS.get(model.device.type, 2048)
    results = [0.0] * len(rows)
    batch: list[int] = []
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for at, i in enumerate(order):
        batch.append(i)
        is_last = at + 1 == len(order)
        if is_last or len(rows[order[at + 1]]) * (len(batch) + 1) > limit:
            for j, value in zip(batch, _score(model, [rows[k] for k in batch], pad), strict=True):
                results[j] = value
            batch = []
    return results


def _score(model: PreTrainedModel, rows: Sequence[list[int]], pad: int | None) -> list[float]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad or 0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logits = model(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).logits
    scores: list[float] = logits[:, 0].float().tolist()
    return scores
