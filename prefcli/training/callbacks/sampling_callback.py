"""Answers of the policy and its reference during training, in samples.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from prefcli import preemption
from prefcli.checkpoints.metrics_log import entries_of
from prefcli.console import detail, say, warn
from prefcli.data import Split
from prefcli.data.token_text import escape_text
from prefcli.evaluation.generate import Answer, NotANumberError, Sampling, generate
from prefcli.evaluation.sample_prompts import SamplePrompts, sample_prompts
from prefcli.methods import Method
from prefcli.model.inference import eval_mode_preserving_rng
from prefcli.model.stop_tokens import load_stop_tokens
from prefcli.recipe.compatibility import SHARDED
from prefcli.recipe.distributed_env import strategy_here
from prefcli.recipe.schema import Recipe
from prefcli.secrets import redact
from prefcli.text import counted
from prefcli.training.generation_model import GenerationModel

_METRICS = ("samples_ended", "samples_repeated", "samples_distinct")
_LINE_WIDTH = 90

Answers = dict[str, Any]
"""The texts `greedy` and `sampled`; `cut` names those that reached max_new_tokens."""


def make_samples(
    recipe: Recipe,
    method: Method,
    split: Split | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    path: Path,
    trainer: Trainer,
) -> SamplingCallback | None:
    """Return the callback, or None if there is nothing to sample; print which and why.

    config: the policy's; path: of samples.jsonl.
    """
    prompts = sample_prompts(recipe.samples, split, tokenizer, config)
    if prompts is None or method.head != "language_model":
        return None
    if (strategy := strategy_here()) == "fsdp1":
        say(f"samples: none, since prefcli does not generate under {strategy}")
        return None
    say(*(f"samples: {note}" for note in prompts.notes))
    if not prompts.prompts:
        return None
    stop_ids = load_stop_tokens(recipe.model, tokenizer, adapter=recipe.trains_adapter).ids
    samples = SamplingCallback(trainer, recipe, method, tokenizer, prompts, stop_ids, path)
    detail(*samples.opening_lines())
    return samples


class SamplingCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Generates answers before the first step and after each evaluation, on the main process.

    The other processes wait for it at their next collective operation. With shards of the model
    they generate the same answers together with it.
    """

    def __init__(
        self,
        trainer: Trainer,
        recipe: Recipe,
        method: Method,
        tokenizer: PreTrainedTokenizerBase,
        prompts: SamplePrompts,
        stop_ids: Collection[int],
        path: Path,
    ) -> None:
        """stop_ids: ids at which an answer stops, for the policy and the reference."""
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._stop_ids = stop_ids
        self._path = path
        self._sampling = Sampling(
            prompts.max_new_tokens,
            recipe.samples.temperature,
            recipe.seed,
            batch_size=len(prompts.prompts),
        )
        self._has_reference = method.needs_reference
        self._other_reference = recipe.reference.name_or_path is not None
        self._reference_not_loaded = self._other_reference and recipe.reference.precompute
        self._reference: dict[str, Answers] = {}
        """The reference's answers by place."""
        self._rows: list[dict[str, Any]] = []
        self._last_step = -1
        self._sums: Mapping[str, tuple[float, float]] = {}
        """Metric: (sum, count) over the last answers; empty on the other processes."""
        self._seconds = 0.0
        self._disabled = False
        self._sharded = strategy_here() in SHARDED
        self._generation_model = GenerationModel(trainer)

    def opening_lines(self) -> list[str]:
        """Return log lines about what will be sampled."""
        no_reference = (
            [
                "samples: without answers of the reference, which is not the starting policy and, "
                "with reference.precompute, not in memory"
            ]
            if self._has_reference and self._reference_not_loaded
            else []
        )
        return [
            f"samples: answers to {counted(len(self._prompts.prompts), 'prompt')} of data.eval at "
            "the start, at each evaluation and at the end, greedy and at temperature "
            f"{self._sampling.temperature:g}, in {self._path} (samples.prompts=0 disables it)",
            *no_reference,
        ]

    def closing_lines(self) -> list[str]:
        """Return log lines with one prompt and its answers before and after."""
        place = self._prompts.prompts[0].place
        rows = [row for row in self._rows if row["place"] == place]
        if not rows:
            return []
        lines = [f"sample: {place}: {_end(rows[-1]['prompt'])}"]
        for row in rows[:1] * (len(rows) > 1) + rows[-1:]:
            lines.append(f"sample: step {row['step']}, greedy: {_start(row['policy']['greedy'])}")
        count = f"{len(self._prompts.prompts)} prompts each time, {self._seconds:.1f} s in total"
        return [*lines, f"samples: all answers are in {self._path} ({count})"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        if state.global_step == 0:
            self._sample(0)
            return
        if state.is_world_process_zero:
            self._recall()
        last = state.global_step >= state.max_steps
        scheduled = last or (args.eval_steps and state.global_step % args.eval_steps == 0)
        known = [row["step"] for row in self._rows] if state.is_world_process_zero else []
        if scheduled and state.global_step not in gather_object(known):
            # The last process was interrupted before it.
            self._sample(state.global_step)

    def eval_metrics(self) -> dict[str, float]:
        """Answer the prompts of an evaluation, and return its metrics on every process."""
        state, accelerator = self._trainer.state, self._trainer.accelerator
        if state.global_step != self._last_step:
            self._sample(state.global_step)
        sums = [self._sums.get(name, (0.0, 0.0)) for name in _METRICS]
        counts = torch.tensor(sums, dtype=torch.float32, device=accelerator.device)
        reduced = accelerator.reduce(counts, reduction="sum").tolist()
        return {
            name: total / count
            for name, (total, count) in zip(_METRICS, reduced, strict=True)
            if count
        }

    def _sample(self, step: int) -> None:
        """Answer all prompts once. A failure is a warning and does not stop the run."""
        self._last_step, self._sums = step, {}
        main = self._trainer.state.is_world_process_zero
        if self._disabled or not (main or self._sharded):
            return
        against = self._generation_model.reason_against_gathering()
        if against is not None:
            say(f"samples: none at step {step}, since {against}")
            return
        started = time.monotonic()
        try:
            answers = self._answers(self._trainer.model_wrapped)
            policy = _texts(answers)
            if step == 0 and self._has_reference:
                self._reference = self._reference_answers(policy)
        except preemption.BreakOff:
            return
        except NotANumberError:
            # The evaluation or the next step reports what this means for the run.
            warn(f"samples: none at step {step}, since the policy's logits are not finite")
            return
        except torch.OutOfMemoryError:
            if self._sharded:
                raise  # the other processes may not have run out of memory
            self._disabled = True
            warn(f"samples: none from step {step} on, since the GPU is out of memory")
            return
        rows = []
        for prompt in self._prompts.prompts:
            row = {"step": step, **prompt.as_dict(), "policy": policy[prompt.place]}
            if prompt.place in self._reference:
                row["reference"] = self._reference[prompt.place]
            rows.append(row)
        if not main:
            return
        self._sums = _measure(answers)
        self._rows += rows
        # At step 0, replace the file of a run that was killed before its first checkpoint.
        with self._path.open("a" if step else "w", encoding="utf-8") as file:
            file.writelines(redact(json.dumps(row)) + "\n" for row in rows)
        self._seconds += time.monotonic() - started

    def _reference_answers(self, policy: dict[str, Answers]) -> dict[str, Answers]:
        """Return the reference's answers before the first step, when most policies equal it."""
        if not self._other_reference:
            return policy
        if self._reference_not_loaded:
            return {}
        return _texts(self._answers(self._trainer.ref_model))

    def _answers(self, model: Any) -> dict[str, dict[str, Answer]]:
        """Return answers by place. One batch for all, so that padding is always the same."""
        prompts = self._prompts.prompts
        texts = [prompt.prompt for prompt in prompts]
        greedy = Sampling(self._sampling.max_new_tokens, batch_size=len(prompts))
        with (
            self._generation_model.prepared(model, gathers=True) as unwrapped,
            eval_mode_preserving_rng(unwrapped),
        ):
            answers = [
                generate(
                    unwrapped,
                    self._tokenizer,
                    texts,
                    options,
                    stop_ids=self._stop_ids,
                    interruptible=not self._sharded,
                )
                for options in (greedy, self._sampling)
            ]
        return {
            prompt.place: {"greedy": greedily, "sampled": sampled}
            for prompt, greedily, sampled in zip(prompts, *answers, strict=True)
        }

    def _recall(self) -> None:
        """Restore the rows before a resume, with the reference's answers at the start."""
        self._rows = entries_of(self._path)
        self._reference = {
            row["place"]: row["reference"] for row in self._rows if "reference" in row
        }
        missing = [p for p in self._prompts.prompts if p.place not in self._reference]
        if self._has_reference and missing and not self._reference_not_loaded:
            say(
                f"samples: without answers of the reference to {len(missing)} prompts, which were "
                "not among those at the start of the run"
            )


def _measure(answers: dict[str, dict[str, Answer]]) -> dict[str, tuple[float, float]]:
    """Return (sum, count) of each metric of the samples."""
    ended = [answer.ended for both in answers.values() for answer in both.values()]
    greedy = [both["greedy"].text.strip() for both in answers.values()]
    repeated = [share for text in greedy if (share := repeated_4_grams(text)) is not None]
    sums = (
        (sum(ended), len(ended)),
        (sum(repeated), len(repeated)),
        (len(set(greedy)), len(greedy)),
    )
    return dict(zip(_METRICS, sums, strict=True))


def repeated_4_grams(text: str) -> float | None:
    """Return the share of 4-grams of words that occur earlier; None for fewer than four words.

    seq-rep-4 of Welleck et al. 2020 (arXiv:1908.04319): 1 - |unique 4-grams| / |4-grams|.
    """
    words = text.split()
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else None


def _texts(answers: dict[str, dict[str, Answer]]) -> dict[str, Answers]:
    return {
        place: {
            **{name: answer.text for name, answer in both.items()},
            "cut": [name for name, answer in both.items() if not answer.ended],
        }
        for place, both in answers.items()
    }


def _start(text: str) -> str:
    line = escape_text(text.strip()) or "(empty)"
    return line if len(line) <= _LINE_WIDTH else f"{line[:_LINE_WIDTH]} ..."


def _end(text: str) -> str:
    line = escape_text(text.strip())
    return line if len(line) <= _LINE_WIDTH else f"... {line[-_LINE_WIDTH:]}"
