"""Is the starting policy fit for preference tuning? Perplexity of the responses it must prefer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefcli.data import Limits, Split, load_split, tokenize
from prefcli.errors import DataError
from prefcli.evaluation.logprobs import Row, Score, score
from prefcli.methods import Method, RowKind
from prefcli.model import check_model, detect_device, load_policy, load_tokenizer, to_device
from prefcli.model.base_model import merged
from prefcli.packed_forward.install import FastForward
from prefcli.recipe import Recipe

_WORST = 5
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class SftReport:
    """Perplexities are per token over all scored tokens; `quantiles` and `worst` are of rows."""

    model: str
    data: str
    rows: int
    tokens: int
    perplexity: float
    """exp of the mean over all tokens; the gate."""
    row_perplexity: float
    """exp of the mean over rows of each row's mean: every row counts alike."""
    max_perplexity: float
    rejected_perplexity: float | None
    chosen_likelier: float | None
    """Share of pairs whose chosen side is likelier per token; None without pairs."""
    quantiles: dict[str, float]
    worst: list[tuple[str, float]]

    @property
    def passed(self) -> bool:
        return self.perplexity <= self.max_perplexity

    def lines(self) -> list[str]:
        lines = [
            f"check-sft: {self.model} on {self.rows} rows ({self.tokens} tokens) of {self.data}",
            f"check-sft: perplexity per token {self.perplexity:.2f} "
            f"(limit {self.max_perplexity:g}); over rows: mean {self.row_perplexity:.2f}, "
            + ", ".join(f"{name} {value:.2f}" for name, value in self.quantiles.items()),
        ]
        if self.rejected_perplexity is not None:
            lines.append(f"check-sft: perplexity of the rejected {self.rejected_perplexity:.2f}")
        if self.chosen_likelier is not None:
            lines.append(
                f"check-sft: the chosen side is likelier per token in {self.chosen_likelier:.0%} "
                "of the pairs"
            )
        lines.append(
            "check-sft: worst rows: "
            + ", ".join(f"{_short(place)} ({value:.1f})" for place, value in self.worst)
        )
        verdict = (
            "passed: the policy knows this kind of text"
            if self.passed
            else "FAILED: these responses are foreign to the policy, and preference tuning would "
            "push on noise; train it on such text first (prefcli sft)"
        )
        return [*lines, f"check-sft: {verdict}"]

    def as_dict(self) -> dict[str, Any]:
        # JSON has no infinity: a perplexity beyond all bounds is null.
        finite = {k: None if v == math.inf else v for k, v in asdict(self).items()}
        return {**finite, "passed": self.passed}


def check_sft(recipe: Recipe) -> SftReport:
    """Load the recipe's starting model and its eval rows (or train, without eval), and measure."""
    device = detect_device()
    # Whatever will be done with an adapter, the policy to measure is the same.
    recipe = recipe.model_copy(update={"model": merged(recipe.model)})
    check_model(recipe)
    tokenizer = load_tokenizer(recipe.model)
    split = load_gate_split(recipe, row_kind(list(recipe.methods.values())), tokenizer)
    dtype = device.dtype(recipe.model, frozen=recipe.trains_adapter)
    model = load_policy(recipe.model, dtype, recipe.seed)
    return measure_sft(to_device(model, device), tokenizer, split, recipe)


def row_kind(methods: Sequence[Method]) -> RowKind:
    """Pairs if any method wants them: they tell most."""
    kinds: list[RowKind] = [m.rows for m in methods]
    order: tuple[RowKind, ...] = ("pair", "labelled", "demonstration")
    return next(kind for kind in order if kind in kinds)


def load_gate_split(recipe: Recipe, kind: RowKind, tokenizer: PreTrainedTokenizerBase) -> Split:
    name = "eval" if recipe.data.eval is not None else "train"
    return load_split(
        recipe.data.eval or recipe.data.train,
        f"data.{name}",
        kind,
        tokenizer,
        limits=Limits(recipe.data.max_length),
        seed=recipe.seed,
        num_proc=recipe.data.num_proc,
    )


def measure_sft(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, recipe: Recipe
) -> SftReport:
    """Score at most `check_sft.max_rows` rows of the split, drawn with the recipe's seed."""
    indices = _draw(len(split.rows), recipe.check_sft.max_rows, recipe.seed)
    rows = [split.rows[i] for i in indices]
    ids = [tokenize(row, tokenizer) for row in rows]
    good = "chosen_ids" if "chosen" in split.rows.column_names else "completion_ids"
    bad = "rejected_ids" if good == "chosen_ids" else good
    liked = [row.get("label") is not False for row in rows]
    disliked = [good != bad or row.get("label") is False for row in rows]
    # Together, since both sides of a pair share a prompt.
    scores = _score(model, [*_rows(ids, good, liked), *_rows(ids, bad, disliked)], recipe)
    chosen, rejected = scores[: len(rows)], scores[len(rows) :]
    pairs = [(c, r) for c, r in zip(chosen, rejected, strict=True) if c and r]
    scored = [(c, i) for c, i in zip(chosen, indices, strict=True) if c]
    if not scored:
        raise DataError(
            "no desirable row is left to measure",
            place=split.rows[0]["_file"],
            hint="check-sft needs responses that the policy should prefer",
        )
    by_row = sorted(((_perplexity([c]), i) for c, i in scored), reverse=True)
    return SftReport(
        model=recipe.model.name_or_path,
        data=split.rows[0]["_file"],
        rows=len(scored),
        tokens=sum(c.tokens for c, _ in scored),
        perplexity=_perplexity([c for c, _ in scored]),
        row_perplexity=math.exp(min(-sum(c.per_token for c, _ in scored) / len(scored), 700)),
        max_perplexity=recipe.check_sft.max_perplexity,
        rejected_perplexity=_perplexity(kept) if (kept := [r for r in rejected if r]) else None,
        chosen_likelier=(
            sum(c.per_token > r.per_token for c, r in pairs) / len(pairs) if pairs else None
        ),
        quantiles={
            f"p{round(q * 100)}": by_row[min(int((1 - q) * len(by_row)), len(by_row) - 1)][0]
            for q in _QUANTILES
        },
        worst=[(split.place(i), value) for value, i in by_row[:_WORST]],
    )


def _short(place: str) -> str:
    return place.rpartition("/")[2]


def _draw(count: int, limit: int, seed: int) -> list[int]:
    if count <= limit:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), limit))


def _rows(ids: list[dict[str, Any]], side: str, wanted: list[bool]) -> list[Row]:
    """One for each, with nothing to score where it is not wanted."""
    return [
        (row["prompt_ids"], row[side] if this else [])
        for row, this in zip(ids, wanted, strict=True)
    ]


def _score(model: PreTrainedModel, rows: list[Row], recipe: Recipe) -> list[Score | None]:
    length, autocast = recipe.data.max_length, detect_device().autocast(recipe.model)
    speed = FastForward(
        recipe.performance,
        "single",  # as yet no engine has sharded it
        length,
        autocast=torch.bfloat16 if autocast else None,
    )
    return score(model, rows, max_length=length, autocast=autocast, speed=speed)


def _perplexity(scores: list[Score]) -> float:
    """exp of the mean negative log-probability per token; infinite where that overflows."""
    nll = -sum(s.logp for s in scores) / sum(s.tokens for s in scores)
    return math.exp(nll) if nll < 700 else math.inf
