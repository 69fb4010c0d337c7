"""The check-sft gate: perplexity of the chosen responses under the starting policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefcli.data import Limits, Split, load_split, tokenize
from prefcli.data.prompt_part import prompt_parts
from prefcli.data.row_sampling import draw_sorted
from prefcli.errors import DataError
from prefcli.evaluation.logprobs import Row, Score, scoring
from prefcli.methods import Method, RowKind
from prefcli.model import check_model, detect_device, load_policy, load_tokenizer, to_device
from prefcli.model.base_model import with_merged_adapter
from prefcli.packed_forward.install import FastForward
from prefcli.progress_bar import progress
from prefcli.recipe import Recipe

_WORST = 5
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class SftReport:
    """Perplexities of the responses; `quantiles` and `worst` are over rows."""

    model: str
    data: str
    rows: int
    tokens: int
    perplexity: float
    """exp of the mean negative log-prob over all tokens; the gate compares it."""
    row_perplexity: float
    """exp of the mean over rows of their means: every row has the same weight."""
    max_perplexity: float
    rejected_perplexity: float | None
    chosen_more_likely: float | None
    """Share of pairs whose chosen side is more likely per token; None without pairs."""
    quantiles: dict[str, float]
    worst: list[tuple[str, float]]

    @property
    def passed(self) -> bool:
        return self.perplexity <= self.max_perplexity

    def brief_line(self) -> str:
        """Return the verdict with its number."""
        passed = "passed" if self.passed else "FAILED"
        return (
            f"check-sft: {passed}: perplexity of the responses {self.perplexity:.2f} per token "
            f"(limit {self.max_perplexity:g})"
        )

    def lines(self) -> list[str]:
        lines = [
            f"check-sft: {self.model} on {self.rows} rows ({self.tokens} tokens) of {self.data}",
            f"check-sft: perplexity per token {self.perplexity:.2f} "
            f"(limit {self.max_perplexity:g}); over rows: mean {self.row_perplexity:.2f}, "
            + ", ".join(f"{name} {value:.2f}" for name, value in self.quantiles.items()),
        ]
        if self.rejected_perplexity is not None:
            lines.append(f"check-sft: perplexity of rejected {self.rejected_perplexity:.2f}")
        if self.chosen_more_likely is not None:
            lines.append(
                f"check-sft: chosen is more likely per token than rejected in "
                f"{self.chosen_more_likely:.0%} of the pairs"
            )
        lines.append(
            "check-sft: worst rows: "
            + ", ".join(f"{_short(place)} ({value:.1f})" for place, value in self.worst)
        )
        verdict = (
            "passed: these responses are likely under the policy"
            if self.passed
            else "FAILED: these responses are unlikely under the policy; train it on such text "
            "first (prefcli sft)"
        )
        return [*lines, f"check-sft: {verdict}"]

    def as_dict(self) -> dict[str, Any]:
        # JSON has no infinity: an overflowing perplexity is null.
        finite = {k: None if v == math.inf else v for k, v in asdict(self).items()}
        return {**finite, "passed": self.passed}


def check_sft(recipe: Recipe) -> SftReport:
    """Score the recipe's eval rows (or train, without eval) under its starting model."""
    device = detect_device()
    # The starting policy does not depend on what model.adapter says.
    recipe = recipe.model_copy(update={"model": with_merged_adapter(recipe.model)})
    check_model(recipe.model, recipe.lora)
    tokenizer = load_tokenizer(recipe.model)
    split = load_gate_split(recipe, row_kind(list(recipe.methods.values())), tokenizer)
    dtype = device.dtype(recipe.model, frozen=recipe.trains_adapter)
    model = load_policy(recipe.model, dtype, recipe.seed)
    return measure_sft(to_device(model, device), tokenizer, split, recipe)


def row_kind(methods: Sequence[Method]) -> RowKind:
    """Choose the kind of rows for several methods: pairs if any method trains on them."""
    kinds: list[RowKind] = [m.rows for m in methods]
    order: tuple[RowKind, ...] = ("pair", "labelled", "demonstration")
    return next((kind for kind in order if kind in kinds), "demonstration")


def load_gate_split(recipe: Recipe, kind: RowKind, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Load data.eval, or data.train without it."""
    name = "eval" if recipe.data.eval is not None else "train"
    return load_split(
        recipe.data.eval_sources or recipe.data.train,
        f"data.{name}",
        kind,
        tokenizer,
        limits=Limits(recipe.data.max_length),
        seed=recipe.seed,
        num_proc=recipe.data.num_proc,
        part=prompt_parts(recipe.data.held_out, recipe.seed)[0],
    )


def measure_sft(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, recipe: Recipe
) -> SftReport:
    """Score at most `check_sft.max_rows` rows of the split, drawn with the recipe's seed."""
    indices = draw_sorted(range(len(split.rows)), recipe.check_sft.max_rows, recipe.seed)
    rows = [split.rows[i] for i in indices]
    ids = [tokenize(row, tokenizer) for row in rows]
    chosen_key = "chosen_ids" if "chosen" in split.rows.column_names else "completion_ids"
    rejected_key = "rejected_ids" if chosen_key == "chosen_ids" else chosen_key
    is_desirable = [row.get("label") is not False for row in rows]
    is_undesirable = [chosen_key != rejected_key or row.get("label") is False for row in rows]
    # One call, since both sides of a pair share a prompt.
    scores = _score(
        model,
        [*_rows(ids, chosen_key, is_desirable), *_rows(ids, rejected_key, is_undesirable)],
        recipe,
    )
    chosen, rejected = scores[: len(rows)], scores[len(rows) :]
    pairs = [(c, r) for c, r in zip(chosen, rejected, strict=True) if c and r]
    scored = [(c, i) for c, i in zip(chosen, indices, strict=True) if c]
    if not scored:
        raise DataError(
            "no row has a desirable response",
            code="TRN001",
            place=split.rows[0]["_file"],
            hint="add rows labelled true",
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
        rejected_perplexity=_perplexity(scores) if (scores := [r for r in rejected if r]) else None,
        chosen_more_likely=(
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


def _rows(ids: list[dict[str, Any]], side: str, mask: list[bool]) -> list[Row]:
    """Select a side of each row; masked rows have nothing to score."""
    return [
        (row["prompt_ids"], row[side] if is_scored else [])
        for row, is_scored in zip(ids, mask, strict=True)
    ]


def _score(model: PreTrainedModel, rows: list[Row], recipe: Recipe) -> list[Score | None]:
    length, autocast = recipe.data.max_length, detect_device().autocast(recipe.model)
    speed = FastForward(
        recipe.performance,
        "single",  # as yet no engine has sharded it
        length,
        autocast=torch.bfloat16 if autocast else None,
    )
    with (
        scoring(model, max_length=length, autocast=autocast, speed=speed) as score_rows,
        progress("check-sft", len(rows)) as count,
    ):
        return score_rows(rows, done=count)


def _perplexity(scores: list[Score]) -> float:
    """Return exp of the mean negative log-prob per token; infinite if that overflows."""
    nll = -sum(s.logp for s in scores) / sum(s.tokens for s in scores)
    return math.exp(nll) if nll < 700 else math.inf
