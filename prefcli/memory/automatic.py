"""launch.strategy: auto and training.per_device_train_batch_size: auto.

The predicted memory decides them before the processes of a run start; where it is unknown, a plain
rule does.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefcli.errors import PrefcliError
from prefcli.memory.advice import Candidate, advise, fewest_changes, is_allowed, refuse
from prefcli.memory.hardware import Hardware
from prefcli.memory.prediction import Memory
from prefcli.memory.step_memory import StepMemory
from prefcli.methods import Method
from prefcli.recipe.compatibility import Strategy
from prefcli.recipe.defaults import plain_batch_size, with_batch_size, with_strategy
from prefcli.recipe.schema import Recipe
from prefcli.text import first_line, format_bytes
from prefcli.trl_integration.trl_args import batch_sizes


@dataclass(frozen=True)
class Resolved:
    """A recipe and its hardware without automatic settings."""

    recipe: Recipe
    target: Hardware
    line: str | None = None
    """The choice and its reason, for the log."""
    too_large: tuple[Candidate, Memory] | None = None
    """The step, if no choice makes it fit."""


def resolve_automatic(
    recipe: Recipe, method: Method, target: Hardware, step: StepMemory | None
) -> Resolved:
    """Choose the strategy and the rows per device where they are auto.

    step: None if the model is unknown. Raises RecipeError if the rows cannot be divided.
    """
    if not target.automatic and recipe.launch.strategy == "auto":
        recipe = with_strategy(recipe, target.strategy)  # a launcher has chosen it
    by_memory = recipe.training.per_device_train_batch_size == "auto"
    if not by_memory and not target.automatic:
        return Resolved(recipe, target)
    # The saved recipe must be valid for its other methods, too.
    smallest = max(other.smallest_batch()[0] for other in recipe.methods.values())
    sizes = (
        batch_sizes(recipe.training, target.devices, smallest)
        if by_memory
        else [recipe.training.train_batch_size]
    )
    why = _why_by_rule(target, step)
    if step is not None and why is None:
        try:
            return _by_memory(Candidate(recipe, method, target), sizes, step)
        except PrefcliError:
            raise
        # A model may use operations without a fake version; the recipe is not at fault.
        except Exception as error:
            why = f"as the step cannot be simulated ({first_line(error)})"
    if by_memory:
        rows = plain_batch_size(recipe.training, target.devices, smallest)
        recipe = with_batch_size(recipe, rows)
    line = f"launch: {_describe(recipe, target)}, {why}"
    return Resolved(with_strategy(recipe, target.strategy), target, line)


def refuse_too_large(candidate: Candidate, memory: Memory, step: StepMemory) -> None:
    """Raise GateError with the fewest changes that make the step fit."""
    advice = list(advise(candidate, memory, step.quick))
    cure = fewest_changes(candidate, advice, step.quick, step.exact)
    refuse(memory, candidate.target, cure)


def _why_by_rule(target: Hardware, step: StepMemory | None) -> str | None:
    """Explain why a plain rule decides; None if the memory does."""
    if target.device.kind == "cpu":
        return "as always on a CPU"
    if target.gpu_memory is None:
        return "as the memory of a GPU is not known here"
    return "as the model is not known" if step is None else None


def _by_memory(candidate: Candidate, sizes: Sequence[int], step: StepMemory) -> Resolved:
    target = candidate.target
    strategies: tuple[Strategy, ...] = (target.strategy,)
    if target.automatic and target.devices > 1:
        strategies = ("ddp", "fsdp2")
    refused: list[tuple[Candidate, Memory]] = []
    for strategy in strategies:
        spread = replace(target, strategy=strategy, automatic=False)
        trial = _Trial(candidate._replace(target=spread), step)
        if refused and not is_allowed(trial.of(sizes[0])):
            continue
        rows = trial.most_rows(sizes)
        memory = trial.memory(rows or sizes[0])
        chosen = candidate._replace(
            recipe=with_strategy(with_batch_size(candidate.recipe, rows or sizes[0]), strategy),
            target=spread,
        )
        if rows is not None:
            others = "".join(
                f"; {c.target.strategy} needs {format_bytes(m.needed)}" for c, m in refused
            )
            line = (
                f"launch: {_describe(chosen.recipe, spread)}, {format_bytes(memory.needed)} of "
                f"{format_bytes(spread.gpu_memory or 0)} predicted{others}"
            )
            return Resolved(chosen.recipe, spread, line)
        refused.append((trial.of(sizes[0]), memory))
    too_large, memory = refused[-1]
    recipe = with_strategy(with_batch_size(candidate.recipe, sizes[0]), too_large.target.strategy)
    return Resolved(recipe, too_large.target, too_large=(too_large, memory))


class _Trial:
    """Numbers of rows per device on the same hardware; each step is simulated once."""

    def __init__(self, candidate: Candidate, step: StepMemory) -> None:
        def of(rows: int) -> Candidate:
            recipe = with_batch_size(candidate.recipe, rows)
            return step.resolved(candidate._replace(recipe=recipe))[0]

        self.of = functools.cache(of)
        self.memory = functools.cache(lambda rows: step.quick(self.of(rows)))
        self._target = candidate.target

    def most_rows(self, sizes: Sequence[int]) -> int | None:
        """Return the largest size that fits, if possible one that needs no checkpointing.

        sizes: in ascending order. None if not even the smallest fits.
        """
        recomputed = bisect_left(sizes, True, key=self._recomputes)
        for group in (sizes[:recomputed], sizes[recomputed:]):
            fitting = bisect_left(group, True, key=self._is_too_large)
            if fitting:
                return group[fitting - 1]
        return None

    def _recomputes(self, rows: int) -> bool:
        return self.of(rows).recipe.training.gradient_checkpointing is True

    def _is_too_large(self, rows: int) -> bool:
        return not self.memory(rows).fits(self._target)


def _describe(recipe: Recipe, target: Hardware) -> str:
    rows = recipe.training.train_batch_size
    where = (
        f"{target.strategy} on {target.devices} devices" if target.devices > 1 else "one process"
    )
    return f"{where}, {rows} row{'s'[: rows != 1]} per device"
