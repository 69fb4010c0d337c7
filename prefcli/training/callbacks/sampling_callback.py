"""What the policy answers as it learns, beside its reference, in samples.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from prefcli import preemption
from prefcli.console import say, warn
from prefcli.data import Split
from prefcli.data.token_text import escape_text
from prefcli.evaluation.generate import NotANumberError, Sampling, generate
from prefcli.evaluation.sample_prompts import SamplePrompts, choose_prompts
from prefcli.methods import Method
from prefcli.model.inference import eval_mode_preserving_rng
from prefcli.model.stop_tokens import load_stop_tokens
from prefcli.recipe.compatibility import SHARDED
from prefcli.recipe.distributed_env import strategy_here
from prefcli.recipe.schema import Recipe

_WIDTH = 90

Answers = dict[str, str]
"""greedy and sampled."""


def questions(
    recipe: Recipe,
    split: Split | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
) -> SamplePrompts | None:
    """What is to be asked; None where the recipe asks nothing. config: the policy's."""
    if split is None or not recipe.samples.prompts:
        return None
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return choose_prompts(split, tokenizer, recipe.samples, context)


def make_samples(
    recipe: Recipe,
    method: Method,
    split: Split | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    path: Path,
    trainer: Trainer,
) -> SamplingCallback | None:
    """None where nothing is asked. Says what will be done, or why nothing is.

    config: the policy's; path: of samples.jsonl.
    """
    asked = questions(recipe, split, tokenizer, config)
    if asked is None:
        return None
    strategy = strategy_here()
    if strategy in SHARDED:
        say(f"samples: left out, as no process holds the whole model under {strategy}")
        return None
    say(*(f"samples: {note}" for note in asked.notes))
    if not asked.prompts:
        return None
    ends = load_stop_tokens(recipe.model, tokenizer, adapter=recipe.trains_adapter).ids
    samples = SamplingCallback(trainer, recipe, method, tokenizer, asked, ends, path)
    say(*samples.lines())
    return samples


class SamplingCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Answers before the first step and after each evaluation, on the main process.

    The other processes wait for it at their next exchange.
    """

    def __init__(
        self,
        trainer: Trainer,
        recipe: Recipe,
        method: Method,
        tokenizer: PreTrainedTokenizerBase,
        questions: SamplePrompts,
        ends: Collection[int],
        path: Path,
    ) -> None:
        """ends: ids at which an answer stops, the reference's as well as the policy's."""
        self.trainer = trainer
        self._tokenizer = tokenizer
        self._questions = questions
        self._ends = ends
        self._path = path
        self._drawn = Sampling(
            questions.max_new_tokens,
            recipe.samples.temperature,
            recipe.seed,
            batch_size=len(questions.prompts),
        )
        self._has_reference = method.needs_reference
        self._other_reference = recipe.reference.name_or_path is not None
        self._reference_is_out_of_reach = self._other_reference and recipe.reference.precompute
        self._reference: dict[str, Answers] = {}
        """By place, where it is known."""
        self._rows: list[dict[str, Any]] = []
        self._last_step = -1
        self._seconds = 0.0
        self._off = False

    def lines(self) -> list[str]:
        """What will be done, before it is."""
        left_out = (
            [
                "samples: without the reference's answers: it is another model than the starting "
                "policy, and reference.precompute keeps it out of memory"
            ]
            if self._has_reference and self._reference_is_out_of_reach
            else []
        )
        return [
            f"samples: {len(self._questions.prompts)} prompts of data.eval are answered at the "
            "start, at each evaluation and at the end, greedily and at temperature "
            f"{self._drawn.temperature:g}, in {self._path} (samples.prompts=0: none)",
            *left_out,
        ]

    def closing_lines(self) -> list[str]:
        """One prompt, before and after."""
        place = self._questions.prompts[0].place
        rows = [row for row in self._rows if row["place"] == place]
        if not rows:
            return []
        lines = [f"sample: {place}: {_end(rows[-1]['prompt'])}"]
        for row in rows[:1] * (len(rows) > 1) + rows[-1:]:
            lines.append(f"sample: step {row['step']}, greedy: {_start(row['policy']['greedy'])}")
        times = f"{len(self._questions.prompts)} prompts a time, {self._seconds:.1f} s in all"
        return [*lines, f"samples: more of them in {self._path} ({times})"]

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        if state.global_step == 0:
            self._answer(0)
            return
        self._recall()
        last = state.global_step >= state.max_steps
        due = last or (args.eval_steps and state.global_step % args.eval_steps == 0)
        if due and state.global_step not in {row["step"] for row in self._rows}:
            # The last process was kept from it.
            self._answer(state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and state.global_step != self._last_step:
            self._answer(state.global_step)

    def _answer(self, step: int) -> None:
        """All prompts, once; what keeps them from being answered is said, and stops nothing."""
        self._last_step = step
        if self._off:
            return
        started = time.monotonic()
        try:
            policy = self._written(self.trainer.model)
            if step == 0 and self._has_reference:
                self._reference = self._of_reference(policy)
        except preemption.BreakOff:
            return
        except NotANumberError:
            # What that means for the run is for the evaluation or the next step to say.
            warn(f"samples: none at step {step}, as the policy's scores are not finite")
            return
        except torch.OutOfMemoryError:
            self._off = True
            warn(f"samples: none from step {step} on, as the GPU's memory is full")
            return
        rows = []
        for asked in self._questions.prompts:
            row = {"step": step, **asked.as_dict(), "policy": policy[asked.place]}
            if asked.place in self._reference:
                row["reference"] = self._reference[asked.place]
            rows.append(row)
        self._rows += rows
        # What a run left that never came to a checkpoint is not this one's.
        with self._path.open("a" if step else "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self._seconds += time.monotonic() - started

    def _of_reference(self, policy: dict[str, Answers]) -> dict[str, Answers]:
        """Before the first step the policy is the reference, unless the recipe names another."""
        if not self._other_reference:
            return policy
        return {} if self._reference_is_out_of_reach else self._written(self.trainer.ref_model)

    def _written(self, model: Any) -> dict[str, Answers]:
        """By place. In one batch each, so that padding is the same at every time."""
        asked = self._questions.prompts
        prompts = [each.prompt for each in asked]
        model = self.trainer.accelerator.unwrap_model(model)
        greedy = Sampling(self._drawn.max_new_tokens, batch_size=len(asked))
        with eval_mode_preserving_rng(model):
            answers = [
                generate(model, self._tokenizer, prompts, how, stop_ids=self._ends)
                for how in (greedy, self._drawn)
            ]
        return {
            each.place: {"greedy": greedy, "sampled": drawn}
            for each, greedy, drawn in zip(asked, *answers, strict=True)
        }

    def _recall(self) -> None:
        """What was answered before a resume: the start of the run, and its reference."""
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        self._rows = [json.loads(line) for line in lines]
        self._reference = {
            row["place"]: row["reference"] for row in self._rows if "reference" in row
        }
        unknown = [a for a in self._questions.prompts if a.place not in self._reference]
        if self._has_reference and unknown and not self._reference_is_out_of_reach:
            say(
                f"samples: without the reference's answers to {len(unknown)} prompts: they are "
                "not among those that the run began with"
            )


def _start(text: str) -> str:
    line = escape_text(text.strip()) or "(nothing)"
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]} ..."


def _end(text: str) -> str:
    line = escape_text(text.strip())
    return line if len(line) <= _WIDTH else f"... {line[-_WIDTH:]}"
