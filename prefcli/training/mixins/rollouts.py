"""Completions that the policy samples during training, with the scores of a judge.

trl computes the advantages and the loss. Here a completion depends on its step, its place in the
step and the seed alone: a resumed run samples the same, and so do two processes instead of one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import add_fused_lm_head, pad

from prefcli.console import say
from prefcli.data.digests import row_key
from prefcli.data.tokenization import Ids, tokenize_batch
from prefcli.errors import PrefcliError
from prefcli.evaluation.generate import completion_text, generate_ids
from prefcli.evaluation.judges import Completion
from prefcli.evaluation.on_policy.sampling import DrawPerRow
from prefcli.formats.chat_columns import template_columns
from prefcli.model.inference import eval_mode
from prefcli.model.peft_wrapper import base_of
from prefcli.training.generation_model import GenerationModel
from prefcli.training.mixins.distributed import prepare_reference
from prefcli.training.mixins.metric_sums import equal_share, sum_completions
from prefcli.training.mixins.preemption_mixin import PreemptionMixin
from prefcli.training.mixins.reference_kl import reference_of
from prefcli.training.prompt_sampler import PromptSampler
from prefcli.trl_integration.trl_compat import completions_in_order, reference_of_rloo

_ROW = "row"
"""Column with the number of a row in its split."""
_LOGGED = ("entropy", "completions/mean_length", "completions/clipped_ratio")
"""Metrics of trl that are logged as they are."""
_EQUAL = "frac_reward_zero_std"
_OF_GROUPS = ("reward_std", _EQUAL)
"""Those of several completions of one prompt, which an evaluation does not have."""
_CORRELATION = "reward_length_correlation"

Answer = dict[str, Any]
"""A completion of a held-out prompt: its `row`, `place`, `prompt`, `completion`, `reward` and
`tokens`."""


class _JudgeFailedError(Exception):
    """The judge of a process has failed."""

    def __init__(self, error: PrefcliError) -> None:
        super().__init__(str(error))
        self.error = error


class RolloutsMixin(PreemptionMixin):
    """trl's RLOOTrainer with prefcli's sampling, judges, reference and evaluations."""

    ref_model: Any
    _rows: Sequence[Mapping[str, Any]] = ()
    """Rows of the batch that is being answered, each as often as it is answered."""
    _token_logps: list[torch.Tensor]
    """Log-probabilities of the completions' tokens under the policy and the reference."""
    _scores: torch.Tensor
    """The judge's scores of this process's completions; NaN where it gave none."""
    _answers: list[Answer]
    """Completions of an evaluation on this process."""
    _answer_readers: Sequence[Callable[[int, list[Answer]], None]] = ()

    def __init__(
        self,
        *args: Any,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        ref_model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """ref_model: None if the policy without its adapter, or with a copy, is the reference."""
        self._answers, self._token_logps = [], []
        self._generation_model, self._reported = GenerationModel(self), False
        with reference_of_rloo(ref_model):
            super().__init__(
                *args,
                reward_funcs=[self._judge],  # which `_calculate_rewards` calls
                train_dataset=_prepared(train_dataset, kwargs["processing_class"]),
                eval_dataset=None
                if eval_dataset is None
                else _prepared(eval_dataset, kwargs["processing_class"]),
                **kwargs,
            )
        packed = self.context.packed_forward
        if ref_model is not None and self.ref_model is None:  # next to an adapter
            prepare = add_fused_lm_head if packed is None else packed.prepare
            prepare(ref_model, temperature=self.temperature)
            self.ref_model = prepare_reference(ref_model, self.accelerator)
        if packed is None or not packed.is_in_use:
            for model in (self.model, self.ref_model):
                if model is not None:
                    _count_positions_past_padding(self.accelerator.unwrap_model(model))
        if self.context.stop_ids:
            self.eos_token_ids = sorted(self.context.stop_ids)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> PromptSampler:
        rows = self.train_dataset if dataset is None else dataset
        return PromptSampler(
            len(rows),
            per_step=self.args.generation_batch_size // self.num_generations,
            generations=self.num_generations,
            repeats=self.args.steps_per_generation,
            seed=self.args.seed,
        )

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Sample and judge the completions of rows, which are a list until then."""
        if not isinstance(inputs, list):
            return inputs
        with completions_in_order():  # those of a prompt share it in the packed forward
            return super()._prepare_inputs(inputs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows, self._token_logps = inputs, []
        if self.context.judge is None:
            return self._without_generation()
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._measure(batch["completion_mask"])
        return batch

    def _without_generation(self) -> dict[str, Any]:
        """Return the longest completions without values, for the prediction of memory."""
        count, device = len(self._rows), self.accelerator.device
        prompts = [torch.tensor(ids) for ids in self._tokenize_prompts([])[0]]
        prompt = pad(prompts, padding_value=0, padding_side="left").to(device)
        completion = prompt.new_zeros(count, self.max_completion_length)
        ids = torch.cat([prompt, completion], dim=1)
        size = self.args.per_device_train_batch_size
        rest = (torch.ones_like(ids), completion.size(1), size)
        with torch.no_grad():
            self._get_per_token_logps_and_entropies(self.model, ids, *rest)
            if self.ref_model is not None:
                self._get_per_token_logps_and_entropies(self.ref_model, ids, *rest)
        zeros = torch.zeros(count, device=device)
        return {
            "prompt_ids": prompt,
            "prompt_mask": torch.ones_like(prompt),
            "completion_ids": completion,
            "completion_mask": torch.ones_like(completion),
            "old_logps": zeros,
            "advantages": zeros,
        }

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[Ids], None, dict[str, Any]]:
        """Return the ids that the rows have, in which the tools of a chat are rendered."""
        return [row["prompt_ids"] for row in self._rows], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[Ids], images: Any, multimodal_fields: Any
    ) -> list[Ids]:
        # Not a step, whose end all processes reach together.
        interruptible = self._evaluates and self.args.world_size == 1
        against = self._generation_model.reason_against_gathering()
        if against is not None and not self._reported:
            self._reported = True
            say(f"completions: each layer is gathered for each token, since {against}")
        seeds, size = self._seeds(), self.context.method.sampled_together(len(prompt_ids))
        answers: list[tuple[Ids, bool]] = []
        with (
            self._generation_model.prepared(self.model_wrapped, gathers=against is None) as model,
            eval_mode(model),
            torch.no_grad(),
        ):
            for start in range(0, len(prompt_ids), size):
                batch = slice(start, start + size)
                draw = DrawPerRow(
                    seeds[batch], self.max_completion_length, self.temperature, self.top_p
                )
                answers += generate_ids(
                    model,
                    prompt_ids[batch],
                    self.processing_class.pad_token_id,
                    self.max_completion_length,
                    self.eos_token_ids,
                    processors=[draw],
                    interruptible=interruptible,
                    do_sample=False,  # the last processor has chosen
                    num_beams=1,
                    repetition_penalty=1.0,
                )
        return [ids for ids, _ in answers]

    @property
    def _evaluates(self) -> bool:
        return not self.model.training

    def _seeds(self) -> list[int]:
        """Return a seed for each completion. An evaluation draws the same each time."""
        seed = self.args.seed
        if self._evaluates:
            return [row_key([seed, "eval", row[_ROW]]) for row in self._rows]
        first = self.accelerator.process_index * len(self._rows)
        step = self.state.global_step
        return [row_key([seed, step, first + i]) for i in range(len(self._rows))]

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[Ids],
    ) -> torch.Tensor:
        """Return the scores of all processes; shape (completions, 1)."""
        nan = [math.nan if score is None else score for score in self._judge(completion_ids_list)]
        self._scores = torch.tensor(nan, device=self.accelerator.device)
        scores: torch.Tensor = self.accelerator.gather(self._scores)
        return scores[:, None]

    def _judge(self, completions: list[Ids]) -> list[float | None]:
        """Score completions. Raises _JudgeFailedError on all processes if one of them fails."""
        split = self.context.held_out if self._evaluates else self.context.train
        judge = self.context.judge
        assert judge is not None
        assert split is not None
        rows = []
        for row, ids in zip(self._rows, completions, strict=True):
            options = template_columns(row)
            text = completion_text(self.processing_class, row["prompt_ids"], ids)
            rows.append(Completion(row["prompt"], text, split.place(row[_ROW]), options))
        scores: list[float | None] = []
        error: PrefcliError | None = None
        try:
            scores = judge.score_all(rows)
        except PrefcliError as failed:
            error = failed
        errors = [one for one in gather_object([error]) if one is not None]
        if errors:
            raise _JudgeFailedError(errors[0])
        if self._evaluates:
            self._answers += [
                {"row": row[_ROW], "place": c.place, "prompt": c.prompt, "completion": c.text}
                | {"reward": score, "tokens": len(ids)}
                for row, c, score, ids in zip(self._rows, rows, scores, completions, strict=True)
            ]
        return scores

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        results = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            self._token_logps.append(results[0].detach())
        return results

    def _measure(self, mask: torch.Tensor) -> None:
        """Replace trl's metrics of rewards by exact ones of all processes.

        mask: of the completions' tokens, shape (completions, tokens).
        """
        policy, reference = self._token_logps[:2]
        log_ratios, tokens = ((policy - reference) * mask).sum(1), mask.sum(1)
        self._add(sum_completions(self._scores, log_ratios, tokens, self.beta))
        logged = self._mode_metrics
        of_trl = _LOGGED if self._evaluates else (*_LOGGED, *_OF_GROUPS)
        for name in [name for name in logged if name not in (*of_trl, _CORRELATION)]:
            del logged[name]
        if not self._evaluates:
            values = torch.stack([self._scores.double(), tokens.double()], dim=1)
            both = self.accelerator.gather(values)
            # trl's value is of rewards, in which the KL divergence makes equal scores differ.
            logged[_EQUAL][-1] = equal_share(both[:, 0].view(-1, self.num_generations))
            scores, lengths = both[~both[:, 0].isnan()].T
            logged[_CORRELATION].append(_correlation(scores, lengths))

    @property
    def _mode_metrics(self) -> Any:
        """trl's metrics of training, or of the evaluation."""
        return self._metrics["eval" if self._evaluates else "train"]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return trl's loss. That of an evaluation is computed from the sums of `_measure`."""
        loss = super().compute_loss(model, inputs, return_outputs, **kwargs)
        logged = self._mode_metrics
        for name in [name for name in logged if name.startswith("clip_ratio/")]:
            del logged[name]  # policy and sampler are the same
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            loss = super().training_step(*args, **kwargs)
        except _JudgeFailedError as failed:
            self._stop(failed.error)
        self._metrics["train"].pop("step_time", None)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._answers = []
        try:
            metrics = super().evaluate(*args, **kwargs)
        except _JudgeFailedError as failed:
            self.control.should_evaluate = True
            self._stop(failed.error)
        for reader in self._answer_readers:
            reader(self.state.global_step, self._answers)
        return metrics

    def _stop(self, error: PrefcliError) -> NoReturn:
        """Save the last step, so that the same command resumes from it, and raise the error."""
        if self.state.global_step:
            say(f"stopping at step {self.state.global_step}: {self.save_here()}")
        raise error

    def add_answer_reader(self, reader: Callable[[int, list[Answer]], None]) -> None:
        """Add a reader of the step and the completions of an evaluation on this process."""
        self._answer_readers = [*self._answer_readers, reader]

    @torch.no_grad()
    def prompt_logps(self, row: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of a prompt's tokens under policy and reference, nats."""
        ids = torch.tensor([row["prompt_ids"]], device=self.args.device)
        rest = (ids, torch.ones_like(ids), ids.size(1) - 1)
        policy, _, _ = self._get_per_token_logps_and_entropies(self.model, *rest)
        with reference_of(self) as reference:
            other, _, _ = self._get_per_token_logps_and_entropies(reference, *rest)
        return policy[0], other[0]


def _count_positions_past_padding(model: Any) -> None:
    """Have the model count positions from the first token of a row that is padded on the left, as
    `generate` does; trl would let it count the padding, which absolute positions do not forgive."""
    base = base_of(model)
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return

    def add(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("fused_lm_head") and kwargs.get("position_ids") is None:
            kwargs["position_ids"] = (kwargs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return args, kwargs

    base.register_forward_pre_hook(add, with_kwargs=True)


def _prepared(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Add the number and the tokens of each prompt, from the cache if they were added before."""
    return rows.map(
        _number_and_ids, with_indices=True, batched=True, fn_kwargs={"tokenizer": tokenizer}
    )


def _number_and_ids(
    columns: dict[str, list[Any]], numbers: list[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    ids = [row["prompt_ids"] for row in tokenize_batch(columns, tokenizer)]
    return {_ROW: numbers, "prompt_ids": ids}


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return Pearson's correlation; 0 if one of both is constant."""
    a, b = a - a.mean(), b - b.mean()
    norms = float(a.norm() * b.norm())
    return float((a * b).sum()) / norms if norms > 0 else 0.0
