"""MonitorCallback in real runs: metrics.jsonl, log lines, and the end when a rule stops the run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest
from transformers import TrainerControl, TrainerState

from prefcli.checkpoints.metrics_log import truncate_logs
from prefcli.checkpoints.run_dir import RunDir
from prefcli.data.run_datasets import load_run_datasets
from prefcli.errors import DivergedError, ExitCode
from prefcli.health import Advice, HealthRule, History, Monitor, RunContext
from prefcli.health.finite import Finite
from prefcli.metrics import is_tie, metric
from prefcli.model import detect_device, load_policy, load_tokenizer
from prefcli.training.callbacks.monitor_callback import MonitorCallback
from prefcli.training.trainer import make_trainer
from tests.support.tiny_runs import metric_rows


class LossAt(HealthRule):
    """Reports the row of one step, and a gradient that is not finite."""

    name: ClassVar[str] = "loss_at"
    step: int = 2
    level: Literal["note", "warn", "stop"] = "warn"

    def check(self, history: History, run: RunContext) -> Advice | None:
        row = history.train[-1] if history.train else {"step": -1}
        broken = "grad_norm" in row and row["grad_norm"] is None
        if row["step"] != self.step and not broken:
            return None
        return Advice(
            self.name, self.level, history.step, "the loss is seen", "a test", "nothing at all"
        )


@dataclass
class Run:
    trainer: object
    watch: MonitorCallback
    folder: RunDir


def run_of(recipe, name: str, *checks: HealthRule) -> Run:
    """A trainer with a monitor, as a run builds them."""
    tokenizer = load_tokenizer(recipe.model)
    inputs = load_run_datasets(recipe, recipe.methods[name], tokenizer)
    method, _ = inputs.resolve_from_data(recipe.methods[name])
    folder = RunDir(recipe.output_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    watch = MonitorCallback(folder, method, Monitor(checks, RunContext(method=name, steps=6)))
    policy = load_policy(
        recipe.model, detect_device().dtype(recipe.model, frozen=False), recipe.seed
    )
    trainer, _ = make_trainer(
        recipe, method, detect_device(), policy, tokenizer, inputs, callbacks=[watch]
    )
    return Run(trainer, watch, folder)


@pytest.fixture
def recipe(recipe_data, make_recipe):
    recipe_data["training"] |= {"max_steps": 6, "eval_steps": 3, "save_steps": 4}
    return make_recipe(recipe_data).recipe


def cell(line: str, label: str) -> str:
    return re.search(rf" {re.escape(label)}=(\S+)", line)[1]


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "orpo"])
def test_monitor_logs_every_row_aligned(recipe, name, capfd):
    run = run_of(recipe, name)
    run.trainer.train()
    run.watch.close()
    out, err = capfd.readouterr()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out + err), "plain text and line ends"
    lines = [line for line in out.splitlines() if "step=" in line]
    rows = metric_rows(run.folder.path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert [line.split()[0] for line in lines] == [f"step={row['step']}/6" for row in rows]
    for line, row in zip(lines, rows, strict=True):
        prefix = "eval_" if "eval_loss" in row else ""
        for key in run.watch._method.watched:
            if prefix + key in row and not is_tie(row, prefix + key):
                shown = metric(key)
                assert cell(line, prefix + shown.label) == shown.format(row[prefix + key])
    for kind in (True, False):
        same = [line for line in lines if ("eval_loss" in line) is kind]
        assert len({tuple(m.start() for m in re.finditer("=", line)) for line in same}) == 1
    assert out.count("saved checkpoint-4") == 1
    assert re.search(
        r"plan: at \S+ s per step the run ends at about \d\d:\d\d \(in 0:00:0\d\)", out
    )


def test_monitor_reports_advice_once_and_records_it(recipe, capfd):
    run = run_of(recipe, "dpo", LossAt())
    run.trainer.train()
    line = "health: warning at step 2: the loss is seen: a test; nothing at all"
    assert capfd.readouterr().out.splitlines().count(line) == 1
    (entry,) = map(json.loads, run.folder.health.read_text().splitlines())
    assert entry == {
        "rule": "loss_at",
        "level": "warn",
        "step": 2,
        "seen": "the loss is seen",
        "means": "a test",
        "change": "nothing at all",
        "message": "the loss is seen: a test; nothing at all",
    }


def test_monitor_stops_the_run_in_the_logging_step_of_the_advice(recipe):
    run = run_of(recipe, "dpo", LossAt(level="stop", step=4))
    with pytest.raises(DivergedError) as caught:
        run.trainer.train()
    run.watch.close()
    assert caught.value.exit_code == ExitCode.DIVERGED
    (problem,) = caught.value.problems
    assert (problem.code, problem.path) == ("TRN100", "health.loss_at")
    assert problem.message == "step 4: the loss is seen: a test"
    assert "health.loss_at.level=warn" in problem.hint
    assert [row["step"] for row in metric_rows(run.folder.path)][-1] == 4
    assert run.trainer.state.global_step == 4
    assert not run.folder.model.exists()


def test_monitor_of_a_resumed_run_does_not_repeat_advice(recipe, capfd):
    first = run_of(recipe, "dpo", LossAt(step=2))
    first.trainer.train()
    truncate_logs(first.folder, 4)
    capfd.readouterr()
    again = run_of(recipe, "dpo", LossAt(step=5))
    again.trainer.args.eval_on_start = False
    again.trainer.train(resume_from_checkpoint=str(first.folder.path / "checkpoint-4"))
    out = capfd.readouterr().out
    assert "health:" not in out, "the same rule at the same level"
    assert [row["step"] for row in metric_rows(first.folder.path)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert len(first.folder.health.read_text().splitlines()) == 1
    assert again.watch.first_eval["step"] == 0
    assert again.watch.since == ", 4 of them before this resume,"
    assert out.count("step=") == 3


@pytest.mark.parametrize(("float16", "stops"), [(True, False), (False, True)])
def test_monitor_accepts_an_infinite_gradient_in_float16(
    tmp_path, make_recipe, recipe_data, float16, stops
):
    """The loss scaling of float16 overflows by design."""
    method = make_recipe(recipe_data).recipe.dpo
    monitor = Monitor([Finite()], RunContext(method="dpo", steps=6, fp16=float16))
    watch = MonitorCallback(RunDir(str(tmp_path)), method, monitor)
    state, control = TrainerState(max_steps=6, global_step=1), TrainerControl()
    args = SimpleNamespace(fp16=float16, world_size=1, eval_strategy="no", save_strategy="no")
    watch.on_train_begin(args, state, control)
    logs = {"loss": 0.7, "grad_norm": math.inf}
    if stops:
        with pytest.raises(DivergedError):
            watch.on_log(args, state, control, logs=logs)
    else:
        watch.on_log(args, state, control, logs=logs)
    (row,) = metric_rows(tmp_path)
    assert row["grad_norm"] is None, "JSON has neither NaN nor infinity"
    assert row["loss"] == 0.7


def test_run_dir_truncates_and_clears_all_logs(tmp_path):
    folder = RunDir(str(tmp_path))
    entries = {
        folder.metrics: {"loss": 0.5},
        folder.health: {
            "rule": "kl",
            "level": "warn",
            "message": "m",
            "meaning": "n",
            "advice": "a",
        },
        folder.samples: {"place": "a.jsonl: row 1", "prompt": "p"},
    }
    for path, entry in entries.items():
        lines = [json.dumps({"step": step} | entry) for step in (2, 4, 6)]
        path.write_text("\n".join([*lines, '{"ste']))
    truncate_logs(folder, 4)
    for path in entries:
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4]
    folder.clear()
    assert not any(path.exists() for path in entries)


def test_truncate_logs_reports_a_broken_line_before_a_last_line_without_newline(tmp_path, capsys):
    folder = RunDir(str(tmp_path))
    folder.metrics.write_text('{"step": 2}\n{"st\n{"step": 4}')
    truncate_logs(folder, 4)
    assert folder.metrics.read_text() == '{"step": 2}\n{"step": 4}\n'
    assert "metrics.jsonl: 1 lines can't be read" in capsys.readouterr().out
