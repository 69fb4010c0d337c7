"""All that the acceptance script knows of prefcli's inside; the rest goes by the command line."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel, PrinterCallback
from trl.trainer.utils import add_fused_lm_head

import prefcli.training.run
from prefcli import cli
from prefcli.packed_forward import chunked_lm_head, forward, prefix_attention, varlen

# A page takes longer than a run of a tiny model.
prefcli.training.run.write_report_and_card = lambda *args, **kwargs: None


def run(words: list[str], log: Path) -> dict[str, Any]:
    """`prefcli` with these words, in this process: its exit code, and the seconds it took."""
    AcceleratorState._reset_state(reset_partial_state=True)
    environment_before, argv = dict(os.environ), sys.argv
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        sys.argv = ["prefcli", *words]
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        finally:
            sys.argv = argv
            os.environ.clear()
            os.environ.update(environment_before)
    seconds = time.monotonic() - began
    release()
    return {"code": code, "seconds": seconds}


class _MadeError(BaseException):
    """Ends a run where its trainer is made."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.trainer = trainer


def trainer_of(recipe_file: Path, name: str) -> Any:
    """The trainer of a run, as the run makes it, without what listens to it."""
    make_trainer = prefcli.training.run.make_trainer

    def made(*args: Any, **options: Any) -> None:
        trainer, _ = make_trainer(*args, **{**options, "eval_on_start": False, "callbacks": ()})
        raise _MadeError(trainer)

    prefcli.training.run.make_trainer = made
    log = recipe_file.parent / "made.txt"
    try:
        done = run([name, str(recipe_file)], log)
    except _MadeError as end:
        trainer = end.trainer
        end.__traceback__ = None
    else:
        raise RuntimeError(f"exit code {done['code']}: {log.read_text('utf-8')[-400:]}")
    finally:
        prefcli.training.run.make_trainer = make_trainer
    trainer.args.save_strategy = "no"
    trainer.remove_callback(PrinterCallback)
    return trainer


def release() -> None:
    """Free unreferenced objects and the cached memory of the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def speed_of(trainer: Any) -> dict[str, Any]:
    """Return the entry of run.json about forward passes."""
    values: dict[str, Any] = trainer.context.packed_forward.as_dict()
    return values


def checkpointing_of(trainer: Any) -> bool:
    return bool(trainer.args.gradient_checkpointing)


FLASH, SEGMENTS = varlen.NAME, prefix_attention.NAME


def scores(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], attention: str | None
) -> torch.Tensor:
    """Return log-probabilities (rows, length - 1), zero where there is no label.

    attention: one of prefcli's; None for trl's own forward.
    """
    if "forward" not in vars(model):
        add_fused_lm_head(model, outputs=("log_probs",))
    uninstall: Callable[[], None] = lambda: None  # noqa: E731
    if attention is not None:
        packed = forward.LabelForward.of(model)
        assert packed is not None
        uninstall = forward.install(model, packed, forward.Counts(), attention)
    try:
        output = model(**batch, fused_lm_head=True)
    finally:
        uninstall()
    values: torch.Tensor = output.log_probs
    return values


def head(
    hidden: torch.Tensor, projection: torch.nn.Linear, targets: torch.Tensor, *, by_torch: bool
) -> torch.Tensor:
    """Log-probability of each target; by_torch: as on a CPU, not by trl's Triton kernels."""
    if by_torch:
        weight, bias = projection.weight, projection.bias
        result = chunked_lm_head.Head.apply(hidden, weight, bias, targets, 1.0, ("log_probs",))
    else:
        result = chunked_lm_head.label_outputs(hidden, projection, targets, 1.0, ("log_probs",))
    values: torch.Tensor = result[0]
    return values


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The same in float64, without what was put on it."""
    return copy.deepcopy(model).double()
