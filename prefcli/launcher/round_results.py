"""Results of a round, from the files that its commands have written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from prefcli.errors import RecipeError
from prefcli.text import first_line

PAIRS, EVAL, HELD_OUT = "pairs.jsonl", "eval.json", "held-out.jsonl"
"""Files of a round's folder; each is complete when its command has ended."""
_TWO_SIDED_95 = 1.96


@dataclass(frozen=True)
class Result:
    """Measurements of a round; round 0 is the starting model."""

    number: int
    score: float
    """Mean score of the completions of held-out prompts."""
    error: float
    """Half of its 95 % interval over prompts."""
    rows: int | None = None
    """Rows that the round trained on."""
    kl: float | None = None
    """KL to the starting model, in nats per token."""
    accuracy: float | None = None
    """On the pairs of data.eval, against the starting model."""

    @property
    def name(self) -> str:
        return f"round {self.number}" if self.number else "start"

    def cells(self) -> list[str]:
        """Return rows, score, KL and accuracy as text."""
        low, high = self.score - self.error, self.score + self.error
        return [
            "" if self.rows is None else str(self.rows),
            f"{self.score:+.3f} [{low:+.3f}, {high:+.3f}]",
            "" if self.kl is None else f"{self.kl:.3f}",
            "" if self.accuracy is None else f"{self.accuracy:.1%}",
        ]

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "low": self.score - self.error, "high": self.score + self.error}


class State(BaseModel):
    """The settings that all rounds in a folder depend on, as iterate.json holds them."""

    method: str
    reference: str
    recipe: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> State | None:
        """Return the state of an earlier start, if there was one. Raises RecipeError."""
        if not path.exists():
            return None
        hint = "restore the file, or name another folder with --output-dir"
        return _read(path, cls.model_validate_json, "RUN016", hint)


class _Sample(BaseModel):
    rewards: list[float | None]


class _Made(BaseModel):
    class Result(BaseModel):
        rows: int

    result: Result


class _Estimate(BaseModel):
    value: float | None = None


class _Metrics(BaseModel):
    kl: _Estimate = Field(_Estimate(), alias="reference_kl")
    accuracy: _Estimate = Field(_Estimate(), alias="rewards/accuracies")


class _Evaluation(BaseModel):
    class Total(BaseModel):
        models: dict[str, _Metrics] = Field(min_length=1, max_length=1)

    total: Total


def read_result(folder: Path, number: int) -> Result:
    """Read the measurements of a round. Raises RecipeError for a damaged file."""
    mean, error = _of_step(folder / HELD_OUT, ".samples.jsonl", _mean_score)
    if not number:
        return Result(0, mean, error)
    made = _of_step(folder / PAIRS, ".provenance.yaml", _made)
    evaluation = _of_step(folder / EVAL, ".json", _Evaluation.model_validate_json)
    (metrics,) = evaluation.total.models.values()
    rows, kl, accuracy = made.result.rows, metrics.kl.value, metrics.accuracy.value
    return Result(number, mean, error, rows, kl, accuracy)


def _mean_score(content: bytes) -> tuple[float, float]:
    """Return the mean over prompts of the mean score, and half of its 95 % interval."""
    scores = []
    for line in content.splitlines():
        rewards = _Sample.model_validate_json(line).rewards
        values = [score for score in rewards if score is not None]
        if values:
            scores.append(sum(values) / len(values))
    if not scores:
        raise ValueError("it has no scores")
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / max(len(scores) - 1, 1)
    return mean, _TWO_SIDED_95 * math.sqrt(variance / len(scores))


def _made(content: bytes) -> _Made:
    return _Made.model_validate(yaml.safe_load(content))


_T = TypeVar("_T")


def _of_step(output: Path, suffix: str, parse: Callable[[bytes], _T]) -> _T:
    """Read a file of the step whose output has the name of `output`."""
    hint = f"remove {output}, and run the same command again: it repeats the step"
    return _read(output.with_suffix(suffix), parse, "RUN105", hint)


def _read(path: Path, parse: Callable[[bytes], _T], code: str, hint: str) -> _T:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        what = f"can't be read: {error.strerror}"
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        what = f"is not what prefcli writes: {f'{at}: ' if at else ''}{first['msg']}"
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        what = f"is not what prefcli writes: {first_line(error)}"
    raise RecipeError(f"{path} {what}", code=code, hint=hint)
