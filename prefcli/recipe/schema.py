"""The recipe: its sections together, and the rules between them.

A method's own section is in `methods/` and has the name of its command. Recipes are frozen: what
follows from their values is computed where it is used.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from prefcli import methods as shelf
from prefcli.config_base import ConfigBase, RuleError, section
from prefcli.health import Health
from prefcli.methods import METHODS, Method
from prefcli.recipe.paths import PathText, is_local
from prefcli.recipe.sections import (
    CheckSft,
    Data,
    ExpectedResults,
    Judge,
    Launch,
    Logging,
    Lora,
    Model,
    Pairs,
    Performance,
    PushToHub,
    Reference,
    SampleOptions,
    SftMix,
    Source,
    Training,
    check_pinned,
)

NEEDS_JUDGE = "needs a judge that scores new completions"
JUDGE_EXAMPLE = (
    "write one, e.g. judge: {reward_model: {name_or_path: HUB_ID_OR_FOLDER}}, or judge: "
    "{executable: {command: [python, judge.py]}}"
)


def mixes_demonstrations(method: Method) -> bool:
    """Return whether the rows of sft_mix can be added to the loss of a method."""
    return method.rows not in ("demonstration", "prompt") and method.head == "language_model"


class Recipe(ConfigBase):
    """Everything about a run, in one file."""

    output_dir: PathText
    """The run folder: checkpoints, metrics, report and model/."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of the order of rows, of dropout, of new weights and of samples."""
    model: Model
    lora: Lora | None = None
    reference: Reference = section()
    sft: shelf.Sft | None = None
    dpo: shelf.Dpo | None = None
    ipo: shelf.Ipo | None = None
    kto: shelf.Kto | None = None
    orpo: shelf.Orpo | None = None
    simpo: shelf.Simpo | None = None
    cpo: shelf.Cpo | None = None
    reward: shelf.Reward | None = None
    rloo: shelf.Rloo | None = None
    data: Data
    sft_mix: SftMix | None = None
    training: Training = section()
    performance: Performance = section()
    launch: Launch = section()
    check_sft: CheckSft = section()
    health: Health = section()
    samples: SampleOptions = section()
    judge: Judge | None = None
    pairs: Pairs = section()
    logging: Logging = section()
    expected: ExpectedResults | None = None
    push_to_hub: PushToHub | None = None

    @model_validator(mode="after")
    def _has_a_method(self) -> Recipe:
        if not self.methods:
            raise RuleError(
                f"no method section; add one of {', '.join(f'{m}:' for m in METHODS)} "
                "(an empty one, e.g. `dpo: {}`, has the defaults)",
                code="RCP018",
            )
        return self

    @model_validator(mode="after")
    def _batches_are_large_enough(self) -> Recipe:
        per_device = self.training.per_device_train_batch_size
        if per_device == "auto":
            return self
        for method in self.methods.values():
            smallest, why = method.smallest_batch()
            if per_device < smallest:
                raise RuleError(
                    f"{method.name} needs training.per_device_train_batch_size of at least "
                    f"{smallest}, not {per_device}: {why}"
                )
        return self

    @model_validator(mode="after")
    def _adapter_fits_lora(self) -> Recipe:
        adapter = self.model.adapter
        if adapter == "stack" and self.lora is None:
            raise RuleError("model.adapter stack needs a lora section for the new adapter")
        if adapter == "stack" and self.lora is not None:
            for key in ("modules_to_save", "target_parameters"):
                if getattr(self.lora, key):
                    raise RuleError(
                        "model.adapter stack saves the sum of two adapters, which has no place for "
                        f"lora.{key}; remove it, or merge the adapter into its base first"
                    )
        if adapter == "continue" and self.lora is not None:
            raise RuleError(
                "model.adapter continue trains the existing adapter with its own rank, alpha and "
                "layers; remove the lora section, or write stack"
            )
        if adapter == "merge" and self.lora is not None:
            raise RuleError(
                "model.adapter merge trains the merged model in full; with a lora section, "
                "write stack"
            )
        if self.model.quantization and not self.trains_adapter:
            raise RuleError(
                "model.quantization freezes the weights, so there is nothing to train; "
                "add a lora section"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_used(self) -> Recipe:
        if self.reference != Reference() and not any(
            m.needs_reference for m in self.methods.values()
        ):
            raise RuleError(
                f"reference has no effect on {', '.join(self.methods)}, which use no reference"
            )
        return self

    @model_validator(mode="after")
    def _sampling_methods_have_a_judge(self) -> Recipe:
        for name, method in self.methods.items():
            if not method.needs_judge:
                continue
            if self.lacks_judge(method) and len(self.methods) == 1:
                raise RuleError(f"{name} {NEEDS_JUDGE}; {JUDGE_EXAMPLE}", code="JDG008")
            if self.training.global_batch_size % method.completions_per_prompt:
                raise RuleError(
                    f"training.global_batch_size ({self.training.global_batch_size}) counts "
                    f"completions in {name}; write a multiple of {name}.num_generations "
                    f"({method.completions_per_prompt})"
                )
            if method.sampled_tokens >= self.data.max_length:
                raise RuleError(
                    f"{name}.max_completion_length ({method.sampled_tokens}) leaves no room for a "
                    f"prompt in data.max_length ({self.data.max_length})"
                )
        sampling = [name for name, method in self.methods.items() if method.needs_judge]
        precomputed = any(method.precomputes_reference for method in self.methods.values())
        if self.reference.precompute and sampling and not precomputed:
            raise RuleError(
                f"reference.precompute has no effect on {', '.join(sampling)}: completions are new "
                "in each step"
            )
        return self

    @model_validator(mode="after")
    def _remote_code_of_reference_is_pinned(self) -> Recipe:
        reference = self.reference
        if (
            self.model.trust_remote_code
            and reference.name_or_path is not None
            and not is_local(reference.name_or_path)
        ):
            check_pinned(reference.revision, "reference.revision", "reference.name_or_path")
        return self

    @model_validator(mode="after")
    def _sft_mix_has_a_preference_method(self) -> Recipe:
        methods = self.methods.values()
        if self.sft_mix is None or any(mixes_demonstrations(method) for method in methods):
            return self
        if all(method.head == "reward" for method in methods):
            raise RuleError("sft_mix has no effect on reward, which trains no language model")
        if all(method.needs_judge for method in methods):
            raise RuleError("sft_mix has no effect on rloo, which samples its completions")
        raise RuleError(
            "sft_mix has no effect on sft, which trains on demonstrations already; "
            "add the rows to data.train"
        )

    @model_validator(mode="after")
    def _eval_batch_size_needs_eval_data(self) -> Recipe:
        if self.training.per_device_eval_batch_size is not None and self.data.eval is None:
            raise RuleError("training.per_device_eval_batch_size has no effect without data.eval")
        return self

    @model_validator(mode="after")
    def _eval_steps_need_eval_data(self) -> Recipe:
        if self.training.eval_steps is not None and self.data.eval is None:
            raise RuleError("training.eval_steps has no effect without data.eval")
        return self

    @model_validator(mode="after")
    def _early_stopping_metric_is_measured(self) -> Recipe:
        if self.training.early_stopping is not None:
            self.training.early_stopping.check(self.methods.values())
        return self

    @model_validator(mode="after")
    def _changed_health_rules_apply(self) -> Recipe:
        for rule in self.health.rules:
            if not rule.changed:
                continue  # the same as without the key
            # The rule may be written as its level alone, or as a section.
            keys = f"health.{rule.name} (health.{rule.name}.{rule.changed[0]})"
            if not any(map(rule.applies, self.methods.values())):
                raise RuleError(
                    f"{keys} has no effect on {', '.join(self.methods)}, which do not measure its "
                    "metrics"
                )
            if (rule.needs == "data.eval" and self.data.eval is None) or (
                rule.needs == "sft_mix" and self.sft_mix is None
            ):
                raise RuleError(f"{keys} has no effect without {rule.needs}")
        return self

    @model_validator(mode="after")
    def _samples_need_eval_data(self) -> Recipe:
        changed = self.samples.prompts > 0 and self.samples != SampleOptions()
        if changed and all(method.head == "reward" for method in self.methods.values()):
            raise RuleError("samples has no effect on reward, since its model writes no text")
        if changed and self.data.eval is None:
            raise RuleError("samples has no effect without data.eval, the source of its prompts")
        return self

    @model_validator(mode="after")
    def _expected_metrics_are_measured(self) -> Recipe:
        if self.expected is not None:
            if self.data.eval is None:
                raise RuleError(
                    "expected has no effect without data.eval: it is compared with an evaluation"
                )
            self.expected.check(self.methods)
        return self

    @property
    def trains_adapter(self) -> bool:
        """True if a LoRA adapter is trained, a new or an existing one."""
        return self.lora is not None or self.model.adapter == "continue"

    @property
    def trains_adapter_in_float32(self) -> bool:
        """True if trained weights have to be raised to float32, above a base in 16 bits or less.

        peft does so for low-rank matrices, unless trl sees a quantized base, and not for whole
        layers.
        """
        has_head = self.model.head == "reward"
        has_layers = self.lora is not None and (has_head or bool(self.lora.modules_to_save))
        quantized = self.model.quantization is not None
        return self.model.dtype != "bfloat16" and (has_layers or quantized)

    @property
    def sampling_seed(self) -> int:
        """Seed of the completions of `prefcli pairs`."""
        return self.seed if self.pairs.seed is None else self.pairs.seed

    @property
    def sources(self) -> list[tuple[str, Source]]:
        """Every data source with its dotted path."""
        mix = self.sft_mix.data if self.sft_mix is not None else []
        scores = self.judge.scores if self.judge is not None else None
        sections = (
            ("data.train", self.data.train),
            ("data.eval", self.data.eval_sources),
            ("sft_mix.data", mix),
            ("pairs.prompts", self.pairs.prompts or []),
            ("judge.scores", [scores] if scores is not None else []),
        )
        return [
            (f"{path}[{i}]", source) for path, group in sections for i, source in enumerate(group)
        ]

    @property
    def judges_new_completions(self) -> bool:
        """True if a judge can score completions that have no stored scores."""
        return self.judge is not None and self.judge.scores is None

    def lacks_judge(self, method: Method) -> bool:
        """Return whether nothing can score the completions that a method samples."""
        return method.needs_judge and not self.judges_new_completions

    @property
    def judge_models(self) -> dict[str, tuple[str, str | None]]:
        """Models that the judge loads: dotted path, name and revision."""
        return {} if self.judge is None else self.judge.models

    @property
    def methods(self) -> dict[str, Method]:
        """The method sections of this recipe, by name."""
        return {name: section for name in METHODS if (section := getattr(self, name)) is not None}
