"""The prompts of each step of RLOO, every prompt as often as it is answered."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class PromptSampler(Sampler[int]):
    """Indices of prompts, repeated as trl's RepeatSampler repeats them.

    An epoch has every prompt: its last step is filled with the first prompts of the epoch, where
    trl drops the rest. The order of an epoch depends on the seed and the epoch alone; that of trl
    is another one after a resume.
    """

    def __init__(
        self, prompts: int, *, per_step: int, generations: int, repeats: int, seed: int
    ) -> None:
        """per_step: prompts of a step. repeats: times that the rows of a step are read; trl answers
        them the first time."""
        self._prompts, self._per_step = prompts, per_step
        self._generations, self._repeats = generations, repeats
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    @property
    def _steps(self) -> int:
        return math.ceil(self._prompts / self._per_step)

    def __len__(self) -> int:
        return self._steps * self._per_step * self._generations * self._repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._prompts, generator=generator).tolist()
        for step in range(self._steps):
            start = step * self._per_step
            chosen = [order[i % self._prompts] for i in range(start, start + self._per_step)]
            for _ in range(self._repeats):
                yield from (index for index in chosen for _ in range(self._generations))
