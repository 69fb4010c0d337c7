"""Answers to prompts: what a policy writes, greedily or drawn with a seed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefcli import preemption
from prefcli.data.sources import read
from prefcli.data.tokenization import Ids, prompt_alone
from prefcli.errors import DataError, RecipeError
from prefcli.formats import RowError
from prefcli.formats.chat import Message, to_prompt
from prefcli.model import detect_device, load_policy, load_tokenizer
from prefcli.model.base_model import merged
from prefcli.recipe.sections import Model, Source

Prompt = str | list[Message]


class NotANumberError(RecipeError):
    """The model's scores are not finite, so there is nothing to draw from."""


@dataclass(frozen=True)
class Sampling:
    """How to write: temperature 0 is greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 42
    batch_size: int = 32


def answers(
    models: Sequence[str], prompts_file: str, chat_template: str | None, options: Sampling
) -> list[dict[str, Any]]:
    """One row a prompt: `prompt`, `shown` (its last words), `completions` by model, and
    `completion`, the last model's. Raises RecipeError and DataError."""
    prompts = read_prompts(prompts_file)
    columns = {}
    for name in models:
        model, tokenizer = load_for_generation(
            Model(name_or_path=name, chat_template=chat_template)
        )
        columns[name] = sample(model, tokenizer, prompts, options)
    return [
        {
            "prompt": prompt,
            "shown": prompt if isinstance(prompt, str) else prompt[-1]["content"],
            "completions": {name: columns[name][i] for name in models},
            "completion": columns[models[-1]][i],
        }
        for i, prompt in enumerate(prompts)
    ]


def read_prompts(path: str) -> list[Prompt]:
    """The `prompt` column of a data file, as text or messages."""
    rows = read(Source(path=path), "--prompts")
    if "prompt" not in rows.column_names:
        raise DataError(
            f"found columns {', '.join(rows.column_names)}; expected prompt", place=path
        )
    prompts = []
    for i in range(len(rows)):
        try:
            prompts.append(to_prompt(rows.row(i)["prompt"]))
        except RowError as error:
            file, number = rows.place(i)
            raise DataError(str(error), place=f"{file}: row {number}") from None
    return prompts


def load_for_generation(options: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A finished run's model/ folder, an adapter with its base, or any hub model."""
    device = detect_device()
    dtype = torch.bfloat16 if device.bfloat16 else torch.float32
    options = merged(options)
    model = load_policy(options, dtype, seed=0)
    return model.to(device.kind).eval(), load_tokenizer(options)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    options: Sampling,
    *,
    ends: Collection[int] | None = None,
) -> list[str]:
    """One completion a prompt, in order, without special tokens. Draws from torch's random state.

    ends: ids at which an answer stops; left out, those of the model's generation config.
    Raises NotANumberError.
    """
    if any(isinstance(p, list) for p in prompts) and tokenizer.chat_template is None:
        raise RecipeError(
            "the prompts are messages, but the tokenizer has no chat template",
            hint="pass --chat-template FILE",
        )
    torch.manual_seed(options.seed)
    ids = [prompt_alone({"prompt": prompt}, tokenizer) for prompt in prompts]
    # By length, so that padding, and with it the draw, depends on the prompts alone.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(ids)
    for start in range(0, len(order), options.batch_size):
        batch = order[start : start + options.batch_size]
        written = _write(model, tokenizer, [ids[i] for i in batch], options, ends)
        for i, text in zip(batch, written, strict=True):
            texts[i] = text
    return texts


class _Finite(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """To draw from what is no probability is a crash, on a GPU one that takes the process along."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not bool((scores < torch.inf).all()):  # minus infinity is a token that is ruled out
            raise NotANumberError(
                "the model's scores are not finite",
                hint="its weights are broken, or its dtype is too narrow for them",
            )
        return scores


class _Interruptible(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """An answer can take longer than a run has left."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if preemption.are_deferred() and preemption.received_signal():
            raise preemption.BreakOff
        return scores


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Ids],
    options: Sampling,
    ends: Collection[int] | None,
) -> list[str]:
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    more: dict[str, Any] = (
        {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
        if options.temperature > 0
        else {"do_sample": False}
    )
    if ends is not None:
        more["eos_token_id"] = sorted(ends)
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=options.max_new_tokens,
        pad_token_id=pad,
        use_cache=True,  # also where training has it switched off
        logits_processor=LogitsProcessorList([_Finite(), _Interruptible()]),
        **more,
    )
    return [tokenizer.decode(row[longest:], skip_special_tokens=True) for row in output.tolist()]
