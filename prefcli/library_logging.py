"""What the libraries say by themselves: no bars, and each warning once, as a line of ours."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch  # noqa: F401  # so that its own handlers are there now, and not after ours
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars as disable_hub_bars

from prefcli.console import is_screen, warn

_SPEAK = (
    "transformers",
    "trl",
    "datasets",
    "peft",
    "accelerate",
    "torch",
    "huggingface_hub",
    "bitsandbytes",
)
_FOR_DEVELOPERS = (
    DeprecationWarning,
    PendingDeprecationWarning,
    FutureWarning,
    ImportWarning,
    ResourceWarning,
)
_SETTLED = {
    "Failed to load CPU gemm_4bit_forward": "quantised weights are for GPUs, and need no such file",
    "There were missing keys in the checkpoint model loaded: ['lm_head.weight'].": "tied to the "
    "embeddings, which are there",
    "mtime may not be reliable": "checkpoints are told apart by their step, which is what is meant",
}
"""Beginnings of what the libraries say: why nobody needs to read it here."""
_NO_TEXT = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]+")


def quiet_libraries() -> None:
    """To be called once, below the border and before anything is loaded."""
    datasets.disable_progress_bars()
    disable_hub_bars()
    transformers.utils.logging.disable_progress_bar()
    if not is_screen():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read by trl for a bar of its own
    once = _Once()
    # Some of torch's loggers have a handler each.
    parts = [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    for logger in map(logging.getLogger, [*_SPEAK, *parts]):
        if logger.handlers or logger.name in _SPEAK:
            logger.handlers = [once]
            logger.propagate = False
    if not sys.warnoptions:
        warnings.simplefilter("default")
        for category in _FOR_DEVELOPERS:
            warnings.simplefilter("ignore", category)
    warnings.showwarning = once.show


class _Once(logging.Handler):
    """Says each warning a single time, also where only its numbers differ."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[tuple[str, str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.name.partition(".")[0], record.getMessage())

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Stands for `warnings.showwarning`."""
        library = category.__module__.partition(".")[0]
        self._say(_package(filename) if library == "builtins" else library, str(message))

    def _say(self, library: str, text: str) -> None:
        text = _one_line(text)
        key = library, re.sub(r"\d+", "0", text)
        if key in self._said or text.startswith(tuple(_SETTLED)):
            return
        self._said.add(key)
        warn(f"{library}: {text}")


def _one_line(text: str) -> str:
    return " ".join(_NO_TEXT.sub(" ", text).split())


def _package(filename: str) -> str:
    """The library that a file belongs to, as it is imported."""
    parts = Path(filename).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return parts[parts.index(folder) + 1].removesuffix(".py")
    return "prefcli" if "prefcli" in parts else "python"
