"""What to change in a recipe that needs too much memory: what costs least comes first."""

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
"""Of what is needed; what saves less is not proposed."""


class Candidate(NamedTuple):
    """What is changed step by step."""

    recipe: Recipe
    method: Method
    target: Hardware


class Override(NamedTuple):
    """What is typed on the command line, and what that makes of it."""

    text: str
    setup: Candidate


@dataclass(frozen=True)
class Remedy:
    """One more change, on top of those before it."""

    propose: Callable[[Candidate], Override | None]
    typed: str
    why: str
    saved: int
    memory: Memory
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "change": self.typed,
            "why": self.why,
            "saved": self.saved,
            "needed": self.memory.needed,
            "fits": self.fits,
        }

    def __str__(self) -> str:
        verdict = ", which fits" if self.fits else ""
        return (
            f"{self.typed} saves about {format_bytes(self.saved)} ({self.why}): then "
            f"{format_bytes(self.memory.needed)} needed{verdict}"
        )


Predict = Callable[[Candidate], Memory]


def remedies(setup: Candidate, before: Memory, estimate: Predict) -> Iterator[Remedy]:
    """Down the ladder, each on top of those before it, until it fits or the ladder ends."""
    for propose, why in _LADDER:
        change = propose(setup)
        if change is None or not _is_allowed(change.setup):
            continue
        after = estimate(change.setup)
        saved = before.needed - after.needed
        if saved < _WORTH * before.needed:
            continue
        fits = after.fits(change.setup.target)
        yield Remedy(propose, change.text, why, saved, after, fits)
        if fits:
            return
        setup, before = change.setup, after


def fewest(
    setup: Candidate, found: Sequence[Remedy], estimate: Predict, predict: Predict
) -> list[Remedy]:
    """Those that are needed for it to fit; none where all of them do not do it.

    estimate: quick, for the choice. predict: what the choice is held to.
    """
    if not found or not found[-1].fits:
        return []
    chosen = list(found)
    for remedy in reversed(found[:-1]):
        fewer = [each for each in chosen if each is not remedy]
        without = _apply(setup, fewer)
        if estimate(without).fits(without.target):
            chosen = fewer
    for choice in (chosen, list(found)):
        whole = _apply(setup, choice)
        if predict(whole).fits(whole.target):
            return choice
    return []


def _is_allowed(setup: Candidate) -> bool:
    """Would prefcli take such a recipe, on such devices?"""
    try:
        Recipe.model_validate(setup.recipe.model_dump(by_alias=True))
        accumulate(setup.recipe.training, setup.target.devices)
        check_combinations(setup.recipe, setup.method, setup.target.strategy)
    except (ValueError, RecipeError):
        return False
    return True


def _apply(setup: Candidate, steps: Sequence[Remedy]) -> Candidate:
    for step in steps:
        change = step.propose(setup)
        setup = change.setup if change is not None else setup
    return setup


def _set(setup: Candidate, section: str, key: str, value: Any) -> Override:
    changed = getattr(setup.recipe, section).model_copy(update={key: value})
    recipe = setup.recipe.model_copy(update={section: changed})
    return Override(f"{section}.{key}={str(value).lower()}", setup._replace(recipe=recipe))


def _fused(setup: Candidate) -> Override | None:
    if setup.recipe.training.optim != "adamw_torch":
        return None
    return _set(setup, "training", "optim", "adamw_torch_fused")


def _checkpointing(setup: Candidate) -> Override | None:
    if setup.recipe.training.gradient_checkpointing:
        return None
    return _set(setup, "training", "gradient_checkpointing", True)


def _precompute(setup: Candidate) -> Override | None:
    if not setup.method.needs_reference or setup.recipe.reference.precompute:
        return None
    return _set(setup, "reference", "precompute", True)


def _smaller_batch(setup: Candidate) -> Override | None:
    smallest, _ = setup.method.smallest_batch()
    if setup.recipe.training.per_device_train_batch_size <= smallest:
        return None
    return _set(setup, "training", "per_device_train_batch_size", smallest)


def _shard(setup: Candidate) -> Override | None:
    target = setup.target
    if target.devices == 1 or target.strategy != "ddp" or setup.recipe.model.quantization:
        return None
    return Override("--strategy fsdp2", setup._replace(target=replace(target, strategy="fsdp2")))


def _eight_bits(setup: Candidate) -> Override | None:
    if "adamw_torch" not in setup.recipe.training.optim or setup.target.strategy not in (
        "single",
        "ddp",
    ):
        return None
    return _set(setup, "training", "optim", "adamw_8bit")


def _lora(setup: Candidate) -> Override | None:
    if setup.recipe.trains_adapter or setup.recipe.model.adapter is not None:
        return None
    recipe = setup.recipe.model_copy(update={"lora": Lora()})
    return Override("lora.rank=16", setup._replace(recipe=recipe))


def _four_bits(setup: Candidate) -> Override | None:
    model = setup.recipe.model
    if (
        not setup.recipe.trains_adapter
        or model.quantization is not None
        or model.adapter == "stack"
        or setup.target.strategy not in ("single", "ddp")
    ):
        return None
    return _set(setup, "model", "quantization", "4bit")


def _shorter(setup: Candidate) -> Override | None:
    length = setup.recipe.data.max_length // 2
    return _set(setup, "data", "max_length", length) if length >= 256 else None


_LADDER: tuple[tuple[Callable[[Candidate], Override | None], str], ...] = (
    (_fused, "the same update, without copies in passing"),
    (_checkpointing, "about a third slower"),
    (_precompute, "one pass before training"),
    (_smaller_batch, "more accumulation, the same global batch, slower"),
    (_shard, "more traffic between the devices"),
    (_eight_bits, "optimizer states in 8 bits; needs bitsandbytes"),
    (_lora, "an adapter instead of all weights; about ten times the learning rate"),
    (_four_bits, "QLoRA: frozen weights in NF4, slower; needs bitsandbytes"),
    (_shorter, "more completions are cut, or lost"),
)


def refuse(memory: Memory, target: Hardware, cure: Sequence[Remedy]) -> None:
    """Raises GateError: the step does not fit. cure: what would make it fit, if anything would."""
    assert target.gpu_memory is not None
    raise GateError(
        Problem(
            f"a step needs {format_bytes(memory.needed)} on each GPU, and there are "
            f"{format_bytes(target.gpu_memory)}",
            hint=f"this fits: {' '.join(remedy.typed for remedy in cure)}"
            if cure
            else "no change that is known here makes it fit; take more GPUs, or larger ones "
            "(--devices 8 --strategy fsdp2 shows what sharding would do)",
        )
    )
