"""A reward model that scores: a classifier with one label, or an adapter on one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoConfig, PreTrainedModel

from prefcli.errors import Problem, RecipeError
from prefcli.model.base_model import load_policy, resolve_model, with_merged_adapter
from prefcli.model.loading import loading
from prefcli.model.remote_code import from_pretrained_kwargs
from prefcli.model.reward_head import has_reward_head
from prefcli.recipe.sections import Model, RewardModel

_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Padded tokens of a batch."""


def load_reward_model(
    options: Model, dtype: torch.dtype, where: str, *, pad_token_id: int | None = None
) -> PreTrainedModel:
    """Load a reward model on the CPU in `dtype`, with its adapter merged. Raises RecipeError.

    pad_token_id: of its tokenizer, for a config without one, as that of an adapter's base. The
    reward is that of the last token which is not padding.
    """
    section = with_merged_adapter(RewardModel.of(options))
    if not gives_rewards(section, where):
        raise RecipeError(
            Problem(
                f"{options.name_or_path} is a language model without a reward head",
                path=f"{where}.name_or_path",
                hint="name a model that `prefcli reward` has trained, or one for sequence "
                "classification with num_labels 1",
                code="MDL040",
            )
        )
    model: PreTrainedModel = load_policy(section, dtype, 0, where=where).eval()
    set_padding(model, pad_token_id)
    return model


def gives_rewards(options: Model, where: str) -> bool:
    """Check whether a model is a saved reward model, or an adapter on one. Raises RecipeError."""
    section = with_merged_adapter(RewardModel.of(options))
    source = resolve_model(section, where=where)
    if source.adapter is not None:
        return bool(source.adapter.task_type == "SEQ_CLS")
    with loading(section, "config", where):
        config = AutoConfig.from_pretrained(section.name_or_path, **from_pretrained_kwargs(section))
    return has_reward_head(config)


def set_padding(model: PreTrainedModel, pad_token_id: int | None) -> None:
    """Give the model a padding token, if its config has none."""
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = pad_token_id


@torch.no_grad()
def rewards(
    model: PreTrainedModel, rows: Sequence[list[int]], *, autocast: bool = False
) -> list[float]:
    """Return the score of each sequence of token ids, in their order.

    autocast: compute in bfloat16 on a GPU, except for the head. The classifier reads its
    padding token from its config; without one, it takes single rows only.
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
            with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
                scores = _score(model, [rows[k] for k in batch], pad)
            for j, value in zip(batch, scores, strict=True):
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
