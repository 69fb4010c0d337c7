"""Prints each warning of the libraries once, in prefcli's format, and hides their bars."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch  # noqa: F401  # so that it installs its handlers before ours
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars as disable_hub_bars

from prefcli.console import is_screen, warn

_LIBRARIES = (
    "transformers",
    "trl",
    "datasets",
    "peft",
    "accelerate",
    "torch",
    "huggingface_hub",
    "bitsandbytes",
)
_DEVELOPER_WARNINGS = (
    DeprecationWarning,
    PendingDeprecationWarning,
    FutureWarning,
    ImportWarning,
    ResourceWarning,
)
_HARMLESS = {
    "Failed to load CPU gemm_4bit_forward": "a CPU kernel, not needed on a GPU",
    "There were missing keys in the checkpoint model loaded: ['lm_head.weight'].": "it is tied to "
    "the embeddings, which are present",
    "You have requested `ensure_weight_tying`, but no tied modules": "it is set for models whose "
    "head is the embedding",
    "mtime may not be reliable": "checkpoints are ordered by their step, as intended",
}
"""Beginnings of warnings that are not shown, with the reason why they are harmless here."""
_CONTROL_CHARACTERS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]+")


def quiet_libraries() -> None:
    """Redirect all library output. Call it once, before any model or dataset is loaded."""
    datasets.disable_progress_bars()
    disable_hub_bars()
    transformers.utils.logging.disable_progress_bar()
    if not is_screen():
        os.environ.setdefault("TQDM_DISABLE", "1")  # trl reads it for its own bar
    handler = _OnceHandler()
    # Some of torch's loggers have their own handler.
    torch_loggers = [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    for logger in map(logging.getLogger, [*_LIBRARIES, *torch_loggers]):
        if logger.handlers or logger.name in _LIBRARIES:
            logger.handlers = [handler]
            logger.propagate = False
    if not sys.warnoptions:
        warnings.simplefilter("default")
        for category in _DEVELOPER_WARNINGS:
            warnings.simplefilter("ignore", category)
    warnings.showwarning = handler.show


class _OnceHandler(logging.Handler):
    """Prints each warning once, even if its numbers differ."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[tuple[str, str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self._warn_once(record.name.partition(".")[0], record.getMessage())

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Replace `warnings.showwarning`."""
        library = category.__module__.partition(".")[0]
        self._warn_once(_package(filename) if library == "builtins" else library, str(message))

    def _warn_once(self, library: str, text: str) -> None:
        text = _one_line(text)
        key = library, re.sub(r"\d+", "0", text)
        if key in self._seen or text.startswith(tuple(_HARMLESS)):
            return
        self._seen.add(key)
        warn(f"{library}: {text}")


def _one_line(text: str) -> str:
    return " ".join(_CONTROL_CHARACTERS.sub(" ", text).split())


def _package(filename: str) -> str:
    """Return the import name of the library that a file belongs to."""
    parts = Path(filename).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return parts[parts.index(folder) + 1].removesuffix(".py")
    return "prefcli" if "prefcli" in parts else "python"
