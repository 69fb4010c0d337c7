"""The recipe: its sections together, and the rules between them.

A method's own settings live in `methods/`; a section here is named after the subcommand that
reads it. Recipes are frozen: what is derived is computed where it is used.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from prefcli.config_base import ConfigBase
from prefcli.health import Health
from prefcli.methods import METHODS, Dpo, Ipo, Kto, Method, Orpo, Sft, Simpo
from prefcli.recipe.expected_results import ExpectedResults
from prefcli.recipe.launch import Launch
from prefcli.recipe.paths import PathText, is_local
from prefcli.recipe.performance import Performance
from prefcli.recipe.push import PushToHub
from prefcli.recipe.sections import (
    CheckSft,
    Data,
    Logging,
    Lora,
    Model,
    Reference,
    SampleOptions,
    SftMix,
    Source,
    Training,
    check_pinned,
)


class Recipe(ConfigBase):
    """A run, readable alone."""

    output_dir: PathText
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: Model
    lora: Lora | None = None
    reference: Reference = Field(default_factory=Reference)
    sft: Sft | None = None
    dpo: Dpo | None = None
    ipo: Ipo | None = None
    kto: Kto | None = None
    orpo: Orpo | None = None
    simpo: Simpo | None = None
    data: Data
    sft_mix: SftMix | None = None
    training: Training = Field(default_factory=Training)
    performance: Performance = Field(default_factory=Performance)
    launch: Launch | None = None
    check_sft: CheckSft = Field(default_factory=CheckSft)
    health: Health = Field(default_factory=Health)
    samples: SampleOptions = Field(default_factory=SampleOptions)
    logging: Logging = Field(default_factory=Logging)
    expected: ExpectedResults | None = None
    push_to_hub: PushToHub | None = None

    @model_validator(mode="after")
    def _a_method(self) -> Recipe:
        if not self.methods:
            raise ValueError(
                f"no method section; add one of {', '.join(f'{m}:' for m in METHODS)} "
                "(an empty one, as in `dpo: {}`, takes the defaults)"
            )
        return self

    @model_validator(mode="after")
    def _big_enough_batches(self) -> Recipe:
        per_device = self.training.per_device_train_batch_size
        for method in self.methods.values():
            smallest, why = method.smallest_batch()
            if per_device < smallest:
                raise ValueError(
                    f"{method.name} needs training.per_device_train_batch_size of at least "
                    f"{smallest}, not {per_device}: {why}"
                )
        return self

    @model_validator(mode="after")
    def _an_adapter_where_one_is_trained(self) -> Recipe:
        adapter = self.model.adapter
        if adapter == "stack" and self.lora is None:
            raise ValueError("model.adapter stack needs a lora section: it is the new adapter")
        if adapter == "continue" and self.lora is not None:
            raise ValueError(
                "model.adapter continue trains the adapter with the rank, alpha and layers it "
                "has; leave the lora section out, or write stack"
            )
        if adapter == "merge" and self.lora is not None:
            raise ValueError(
                "model.adapter merge trains the merged model in full; with a lora section, "
                "write stack"
            )
        if self.model.quantization and not self.trains_adapter:
            raise ValueError(
                "model.quantization freezes the weights, so something else must be trained: "
                "add a lora section"
            )
        return self

    @model_validator(mode="after")
    def _a_reference_for_someone(self) -> Recipe:
        if self.reference != Reference() and not any(
            m.needs_reference for m in self.methods.values()
        ):
            raise ValueError(
                f"reference has no effect on {', '.join(self.methods)}, which have none"
            )
        return self

    @model_validator(mode="after")
    def _code_of_one_commit(self) -> Recipe:
        other = self.reference
        if (
            self.model.trust_remote_code
            and other.name_or_path is not None
            and not is_local(other.name_or_path)
        ):
            check_pinned(other.revision, "reference.revision", "reference.name_or_path")
        return self

    @model_validator(mode="after")
    def _a_method_to_mix_into(self) -> Recipe:
        if self.sft_mix is not None and set(self.methods) == {"sft"}:
            raise ValueError(
                "sft_mix has no effect on sft, which trains on demonstrations anyway; "
                "add the rows to data.train"
            )
        return self

    @model_validator(mode="after")
    def _eval_for_eval_batches(self) -> Recipe:
        if self.training.per_device_eval_batch_size is not None and self.data.eval is None:
            raise ValueError("training.per_device_eval_batch_size has no effect without data.eval")
        return self

    @model_validator(mode="after")
    def _eval_for_eval_steps(self) -> Recipe:
        if self.training.eval_steps is not None and self.data.eval is None:
            raise ValueError("training.eval_steps has no effect without data.eval")
        return self

    @model_validator(mode="after")
    def _a_measure_to_stop_by(self) -> Recipe:
        if self.training.early_stopping is not None:
            self.training.early_stopping.check(self.methods.values())
        return self

    @model_validator(mode="after")
    def _health_of_something(self) -> Recipe:
        for check in self.health.checks:
            if not check.changed:
                continue  # not told from what was left out
            # Either may be how it was written: the rule's level alone, or a key of its section.
            keys = f"health.{check.name}, and so health.{check.name}.{check.changed[0]},"
            if not any(map(check.applies, self.methods.values())):
                raise ValueError(
                    f"{keys} has no effect on {', '.join(self.methods)}: nothing that it looks at "
                    "is measured there"
                )
            if (check.needs == "data.eval" and self.data.eval is None) or (
                check.needs == "sft_mix" and self.sft_mix is None
            ):
                raise ValueError(f"{keys} has no effect without {check.needs}")
        return self

    @model_validator(mode="after")
    def _eval_for_samples(self) -> Recipe:
        asked = self.samples.prompts > 0 and self.samples != SampleOptions()
        if asked and self.data.eval is None:
            raise ValueError("samples has no effect without data.eval, where its prompts come from")
        return self

    @model_validator(mode="after")
    def _an_anchor_that_is_measured(self) -> Recipe:
        if self.expected is not None:
            if self.data.eval is None:
                raise ValueError(
                    "expected has no effect without data.eval: it stands beside the last evaluation"
                )
            self.expected.check(self.methods)
        return self

    @property
    def trains_adapter(self) -> bool:
        """Is a LoRA adapter trained, a new one or one that is there?"""
        return self.lora is not None or self.model.adapter == "continue"

    @property
    def sources(self) -> list[tuple[str, Source]]:
        """All that it reads rows from, each with its dotted path."""
        mix = self.sft_mix.data if self.sft_mix is not None else []
        sections = (
            ("data.train", self.data.train),
            ("data.eval", self.data.eval or []),
            ("sft_mix.data", mix),
        )
        return [(f"{where}[{i}]", each) for where, some in sections for i, each in enumerate(some)]

    @property
    def methods(self) -> dict[str, Method]:
        """The method sections this recipe has, by name."""
        return {name: section for name in METHODS if (section := getattr(self, name)) is not None}
