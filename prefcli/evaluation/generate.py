"""Generation: greedy or sampled completions of prompts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch.distributed.fsdp import FSDPModule
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from prefcli import preemption
from prefcli.data.sources import read
from prefcli.data.tokenization import Ids, prompt_alone
from prefcli.errors import DataError, RecipeError
from prefcli.evaluation.arguments import model_argument, named_by
from prefcli.formats import RowError
from prefcli.formats.chat import Message, to_prompt
from prefcli.model import detect_device, load_policy, load_tokenizer
from prefcli.model.base_model import with_merged_adapter
from prefcli.progress_bar import progress
from prefcli.recipe.sections import Model, Source
from prefcli.text import last_line

Prompt = str | list[Message]
MODEL_ARGUMENT = "MODEL"


class Answer(NamedTuple):
    """A generated completion."""

    text: str
    """Without special tokens."""
    ended: bool
    """It ends with a stop token, and not at max_new_tokens."""


class NotANumberError(RecipeError):
    """Logits that are not finite, so that no token can be sampled."""


@dataclass(frozen=True)
class Sampling:
    """Generation settings; temperature 0 is greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 42
    batch_size: int = 32


def generate_answers(
    models: Sequence[str],
    prompts_file: str | None,
    chat_template: str | None,
    options: Sampling,
    *,
    texts: Sequence[str] = (),
) -> Iterator[list[dict[str, Any]]]:
    """Generate answers of several models to the same prompts; yields all rows after each model.

    models: hub ids, folders, or runs, whose model/ is used. The prompts are `texts` and those of
    the file. A text is a user's turn for a model with a chat template.

    A row per prompt: `prompt`, `shown` (its last message), `completions` by model, and
    `completion`, the last model's. Raises RecipeError and DataError.
    """
    prompts: list[Prompt] = [*texts]
    if prompts_file is not None:
        prompts += read_prompts(prompts_file)
    columns: dict[str, list[str]] = {}
    for name in models:
        model, tokenizer = load_named(name, chat_template)
        turns: list[Prompt] = [[{"role": "user", "content": text}] for text in texts]
        given = turns + prompts[len(texts) :] if tokenizer.chat_template else prompts
        columns[name] = [answer.text for answer in generate(model, tokenizer, given, options)]
        yield [
            {
                "prompt": prompt,
                "shown": prompt if isinstance(prompt, str) else prompt[-1]["content"],
                "completions": {answered: column[i] for answered, column in columns.items()},
                "completion": columns[name][i],
            }
            for i, prompt in enumerate(prompts)
        ]


def model_of_run(name: str) -> str:
    """Return the model folder of a run folder, and every other name unchanged."""
    run = Path(name).expanduser()
    is_run = os.path.isfile(run / "run.json") and not os.path.isfile(run / "config.json")
    return str(run / "model") if is_run else name


def read_prompts(path: str) -> list[Prompt]:
    """Read the `prompt` column of a data file, as text or messages."""
    try:
        source = Source(path=path)
    except ValidationError:
        raise RecipeError(
            f"no such data file: {path!r}",
            code="DAT003",
            hint='name a data file with a prompt column, or write --prompt "TEXT" for a text',
        ) from None
    rows = read(source, "--prompts")
    if "prompt" not in rows.column_names:
        raise DataError(
            f"found columns {', '.join(rows.column_names)}; expected prompt",
            code="DAT011",
            place=path,
            hint="rename the column of the prompts to prompt",
        )
    prompts = []
    for i in range(len(rows)):
        try:
            prompts.append(to_prompt(rows.row(i)["prompt"]))
        except RowError as error:
            file, number = rows.place(i)
            raise DataError(str(error), code="DAT010", place=f"{file}: row {number}") from None
    return prompts


def load_named(
    name: str, chat_template: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model that the command line names: a run, a folder or a hub id.

    Raises RecipeError.
    """
    named = model_argument(model_of_run(name), MODEL_ARGUMENT)
    options = named.model_copy(update={"chat_template": chat_template})
    with named_by(MODEL_ARGUMENT), named_by("--chat-template", section="model"):
        return load_for_generation(options, where=MODEL_ARGUMENT)


def load_for_generation(
    options: Model, *, where: str = "model"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a run's model/ folder, an adapter with its base, or a hub model."""
    device = detect_device()
    dtype = torch.bfloat16 if device.bfloat16 else torch.float32
    options = with_merged_adapter(options)
    model = load_policy(options, dtype, seed=0, where=where)
    return model.to(device.kind).eval(), load_tokenizer(options, where=where)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    options: Sampling,
    *,
    stop_ids: Collection[int] | None = None,
    interruptible: bool = True,
    streamer: BaseStreamer | None = None,
) -> list[Answer]:
    """Generate one completion per prompt, in order.

    Seeds torch's random state. Raises NotANumberError, and BreakOff after a deferred signal if it
    is interruptible.

    stop_ids: ids at which an answer stops; by default those of the model's generation config.
    streamer: takes the tokens of a single prompt as they come.
    """
    if any(isinstance(p, list) for p in prompts) and tokenizer.chat_template is None:
        raise RecipeError(
            "the prompts are messages, but the tokenizer has no chat template",
            code="MDL016",
            hint="pass --chat-template FILE",
        )
    torch.manual_seed(options.seed)
    ids = [_prompt_ids(prompt, tokenizer) for prompt in prompts]
    # Sort by length, so that padding, and with it sampling, depends on the prompts only.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers = [Answer("", False)] * len(ids)
    with progress("answers", len(order), "prompts") as count:
        for start in range(0, len(order), options.batch_size):
            batch = order[start : start + options.batch_size]
            given = [ids[i] for i in batch]
            settings: dict[str, Any] = (
                {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
                if options.temperature > 0
                else {"do_sample": False}
            )
            completions = generate_ids(
                model,
                given,
                tokenizer.pad_token_id,
                options.max_new_tokens,
                stop_ids,
                interruptible=interruptible,
                streamer=streamer,
                **settings,
            )
            for i, (completion, ended) in zip(batch, completions, strict=True):
                answers[i] = Answer(completion_text(tokenizer, ids[i], completion), ended)
            count(len(batch))
    return answers


def completion_text(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Ids, completion_ids: Ids
) -> str:
    """Return the text that a completion adds to its prompt, without special tokens.

    Keeps a leading space, which SentencePiece drops from the first token of a text.
    """
    prompt = _decode(tokenizer, prompt_ids)
    text = _decode(tokenizer, [*prompt_ids, *completion_ids])
    return text[len(prompt) :] if text.startswith(prompt) else _decode(tokenizer, completion_ids)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def _prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Return the ids of a prompt. Raises RecipeError if the chat template fails on it."""
    try:
        return prompt_alone({"prompt": prompt}, tokenizer)
    # A chat template is the user's program and may raise any exception.
    except Exception as error:
        if isinstance(prompt, str):
            raise
        raise RecipeError(
            f"the chat template fails on the prompt: {last_line(error)}",
            code="MDL015",
            hint="name another template with --chat-template FILE",
        ) from None


class _CheckFinite(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Raise before sampling from invalid probabilities, which would end the process on a GPU."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not bool((scores < torch.inf).all()):  # minus infinity excludes a token
            raise NotANumberError(
                "the model's logits are not finite",
                code="TRN002",
                hint="check its weights, or load it in a wider dtype",
            )
        return scores


class _CheckPreemption(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Interrupt generation after a preemption signal: an answer may take too long."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if preemption.are_deferred() and preemption.received_signal():
            raise preemption.BreakOff
        return scores


def generate_ids(
    model: PreTrainedModel,
    prompts: list[Ids],
    pad: int,
    max_new_tokens: int,
    stop_ids: Collection[int] | None = None,
    *,
    processors: Sequence[LogitsProcessor] = (),
    interruptible: bool = True,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> list[tuple[Ids, bool]]:
    """Return the tokens of a completion per prompt, and whether it ends with a stop token.

    All prompts are one batch. Raises NotANumberError.

    stop_ids: by default those of the model's generation config. processors: change the logits after
    all others. interruptible: raise BreakOff after a deferred signal. settings: those of
    transformers' `generate`.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    if stop_ids is None:
        eos = model.generation_config.eos_token_id
        stop_ids = [eos] if isinstance(eos, int) else eos or []
    if stop_ids:
        settings["eos_token_id"] = sorted(stop_ids)
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        use_cache=True,  # training disables it
        streamer=streamer,
        # Processes that share the weights make equally many passes.
        synced_gpus=True if isinstance(model, FSDPModule) else None,
        logits_processor=LogitsProcessorList(
            [_CheckFinite(), *([_CheckPreemption()] if interruptible else []), *processors]
        ),
        **settings,
    )
    return [_until_stop(row[longest:], stop_ids) for row in output.tolist()]


def _until_stop(ids: Ids, stop_ids: Collection[int]) -> tuple[Ids, bool]:
    """Cut off the padding after the first stop token; return whether there is one."""
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    return (ids, False) if end is None else (ids[: end + 1], True)
