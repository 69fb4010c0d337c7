"""Changes to a recipe that needs too much memory, the least costly first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from prefcli.errors import GateError, Problem, RecipeError
from prefcli.memory.hardware import Hardware
from prefcli.memory.prediction import Memory
from prefcli.methods import Method
from prefcli.recipe.compatibility import check_combinations
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Lora
from prefcli.text import format_bytes
from prefcli.trl_integration.trl_args import accumulate

_WORTH = 0.01
"""Smallest saving to propose, as a share of the memory needed."""
_SAMPLED = 8
"""Completions to sample at once when memory is short."""


class Candidate(NamedTuple):
    """A recipe, method and hardware, changed step by step."""

    recipe: Recipe
    method: Method
    target: Hardware


class Override(NamedTuple):
    """An override on the command line, and the candidate with it."""

    text: str
    candidate: Candidate


@dataclass(frozen=True)
class MemoryAdvice:
    """One change in addition to those before it."""

    propose: Callable[[Candidate], Override | None]
    change: str
    why: str
    saved: int
    memory: Memory
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "change": self.change,
            "why": self.why,
            "saved": self.saved,
            "needed": self.memory.needed,
            "fits": self.fits,
        }

    def __str__(self) -> str:
        verdict = ", which fits" if self.fits else ""
        return (
            f"{self.change} saves about {format_bytes(self.saved)} ({self.why}): then "
            f"{format_bytes(self.memory.needed)} needed{verdict}"
        )


Predict = Callable[[Candidate], Memory]


def advise(candidate: Candidate, before: Memory, estimate: Predict) -> Iterator[MemoryAdvice]:
    """Propose changes, each in addition to those before it, until the step fits."""
    for propose, why in _LADDER:
        change = propose(candidate)
        if change is None or not is_allowed(change.candidate):
            continue
        after = estimate(change.candidate)
        saved = before.needed - after.needed
        if saved < _WORTH * before.needed:
            continue
        fits = after.fits(change.candidate.target)
        yield MemoryAdvice(propose, change.text, why, saved, after, fits)
        if fits:
            return
        candidate, before = change.candidate, after


def fewest_changes(
    candidate: Candidate, advices: Sequence[MemoryAdvice], estimate: Predict, predict: Predict
) -> list[MemoryAdvice]:
    """Choose the fewest changes with which the step fits; empty if all of them do not suffice.

    estimate: quick, for the choice. predict: exact, to confirm it.
    """
    if not advices or not advices[-1].fits:
        return []
    chosen = list(advices)
    for advice in reversed(advices[:-1]):
        fewer = [other for other in chosen if other is not advice]
        without = _apply(candidate, fewer)
        if estimate(without).fits(without.target):
            chosen = fewer
    for choice in (chosen, list(advices)):
        changed = _apply(candidate, choice)
        if predict(changed).fits(changed.target):
            return choice
    return []


def is_allowed(candidate: Candidate) -> bool:
    """Return whether prefcli accepts the recipe on its devices."""
    try:
        Recipe.model_validate(candidate.recipe.model_dump(by_alias=True))
        accumulate(candidate.recipe.training, candidate.target.devices)
        check_combinations(candidate.recipe, candidate.method, candidate.target.strategy)
    except (ValueError, RecipeError):
        return False
    return True


def _apply(candidate: Candidate, steps: Sequence[MemoryAdvice]) -> Candidate:
    for step in steps:
        change = step.propose(candidate)
        candidate = change.candidate if change is not None else candidate
    return candidate


def _set(candidate: Candidate, section: str, key: str, value: Any) -> Override:
    changed = getattr(candidate.recipe, section).model_copy(update={key: value})
    recipe = candidate.recipe.model_copy(update={section: changed})
    return Override(f"{section}.{key}={str(value).lower()}", candidate._replace(recipe=recipe))


def _fused(candidate: Candidate) -> Override | None:
    if candidate.recipe.training.optim != "adamw_torch":
        return None
    return _set(candidate, "training", "optim", "adamw_torch_fused")


def _checkpointing(candidate: Candidate) -> Override | None:
    if candidate.recipe.training.gradient_checkpointing:
        return None
    return _set(candidate, "training", "gradient_checkpointing", True)


def _precompute(candidate: Candidate) -> Override | None:
    if not candidate.method.precomputes_reference or candidate.recipe.reference.precompute:
        return None
    return _set(candidate, "reference", "precompute", True)


def _smaller_batch(candidate: Candidate) -> Override | None:
    smallest, _ = candidate.method.smallest_batch()
    if candidate.recipe.training.train_batch_size <= smallest:
        return None
    return _set(candidate, "training", "per_device_train_batch_size", smallest)


def _fewer_sampled(candidate: Candidate) -> Override | None:
    recipe, method, target = candidate
    together = method.sampled_together(recipe.training.global_batch_size // target.devices)
    if not method.needs_judge or together <= _SAMPLED:
        return None
    change = {"sampling_batch_size": _SAMPLED}
    section = recipe.methods[method.name].model_copy(update=change)
    changed = candidate._replace(
        recipe=recipe.model_copy(update={method.name: section}),
        method=method.model_copy(update=change),
    )
    return Override(f"{method.name}.sampling_batch_size={_SAMPLED}", changed)


def _shard(candidate: Candidate) -> Override | None:
    target = candidate.target
    if target.devices == 1 or target.strategy != "ddp" or candidate.recipe.model.quantization:
        return None
    return Override(
        "--strategy fsdp2", candidate._replace(target=replace(target, strategy="fsdp2"))
    )


def _eight_bits(candidate: Candidate) -> Override | None:
    if "adamw_torch" not in candidate.recipe.training.optim or candidate.target.strategy not in (
        "single",
        "ddp",
    ):
        return None
    return _set(candidate, "training", "optim", "adamw_8bit")


def _lora(candidate: Candidate) -> Override | None:
    if candidate.recipe.trains_adapter or candidate.recipe.model.adapter is not None:
        return None
    recipe, rates = candidate.recipe, candidate.method.learning_rates
    change = "lora.rank=16"
    if recipe.training.learning_rate is not None:
        rate = recipe.training.learning_rate * rates.lora / rates.full
        change += f" training.learning_rate={rate:.3g}"
    return Override(change, candidate._replace(recipe=recipe.model_copy(update={"lora": Lora()})))


def _four_bits(candidate: Candidate) -> Override | None:
    model = candidate.recipe.model
    if (
        not candidate.recipe.trains_adapter
        or model.quantization is not None
        or model.adapter == "stack"
        or candidate.target.strategy not in ("single", "ddp")
    ):
        return None
    return _set(candidate, "model", "quantization", "4bit")


def _shorter(candidate: Candidate) -> Override | None:
    length = candidate.recipe.data.max_length // 2
    return _set(candidate, "data", "max_length", length) if length >= 256 else None


_LADDER: tuple[tuple[Callable[[Candidate], Override | None], str], ...] = (
    (_fused, "the same update without temporary copies"),
    (_checkpointing, "about a third slower"),
    (_precompute, "one pass over the data before training"),
    (_smaller_batch, "more accumulation, the same global batch, slower"),
    (_fewer_sampled, "more passes of the same completions, slower"),
    (_shard, "more traffic between the devices"),
    (_eight_bits, "optimizer states in 8 bits; needs bitsandbytes"),
    (_lora, "an adapter instead of all weights, with a higher learning rate"),
    (_four_bits, "QLoRA: frozen weights in NF4, slower; needs bitsandbytes"),
    (_shorter, "more completions are cut or dropped"),
)


def refuse(memory: Memory, target: Hardware, cure: Sequence[MemoryAdvice]) -> None:
    """Raise GateError since the step does not fit. cure: changes with which it does."""
    assert target.gpu_memory is not None
    raise GateError(
        Problem(
            f"a step needs {format_bytes(memory.needed)} on each GPU, which has "
            f"{format_bytes(target.gpu_memory)}",
            hint=f"this fits: {' '.join(advice.change for advice in cure)}"
            if cure
            else "no known change makes it fit; use more or larger GPUs (--devices 8 --strategy "
            "fsdp2 shows the effect of sharding)",
            code="TRN031",
        )
    )
