"""What a run shows, on literal rows: lines for a log, a view for a terminal. Torch is blocked."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from rich.console import Console

from prefcli.console import is_screen, print_above, say
from prefcli.health.base import Advice
from prefcli.methods import METHODS
from prefcli.metrics import metric
from prefcli.training.progress import PlainProgress, RichLiveProgress
from prefcli.training.progress.eta import Pace, clock, duration
from prefcli.training.progress.layout import View
from prefcli.training.progress.sparkline import sparkline

DPO = METHODS["dpo"]()
ROWS = [
    {"step": 0, "eval_loss": 0.6931, "eval_rewards/margins": 0.0, "eval_rewards/accuracies": 0.0},
    {
        "step": 1,
        "loss": 0.6931,
        "rewards/margins": 0.0,
        "rewards/accuracies": 0.0,
        "logps/chosen_per_token": -2.3412,
        "grad_norm": 3.2,
        "learning_rate": 0.0,
    },
    {
        "step": 10,
        "loss": 0.5,
        "rewards/margins": 0.75,
        "rewards/accuracies": 0.8125,
        "logps/chosen_per_token": -2.5,
        "grad_norm": 12.345,
        "learning_rate": 5e-7,
        "tokens_per_second": 10234.4,
        "memory_gib": 12.31,
    },
    {
        "step": 10,
        "eval_loss": 0.4321,
        "eval_rewards/margins": 1.25,
        "eval_rewards/accuracies": 0.75,
        "eval_perplexity": 11.5,
        "eval_reference_kl": 0.0123,
        "eval_runtime": 2.0,
    },
]
ADVICE = Advice(
    check="displacement",
    level="warn",
    step=10,
    seen="chosen responses lose 0.5 nats a token against step 0",
    means="likelihood displacement: both sides are pushed down",
    change="raise dpo.beta, or mix in demonstrations with sft_mix",
)


@pytest.fixture(autouse=True)
def _nothing_drawn():
    yield
    print_above(None)


def log(rows, method=DPO, total=63) -> PlainProgress:
    lines = PlainProgress(method.watched, method.watched_in_evaluations)
    lines.open(Pace(0, total, time.monotonic()), [])
    for row in rows:
        lines.measured(row)
    return lines


def test_a_log_is_aligned_and_greppable(capsys):
    log(ROWS)
    first_eval, first, second, last_eval = capsys.readouterr().out.splitlines()
    # Policy and reference agree at the start: a tie is no error.
    assert first_eval.split()[1:] == ["eval_loss=0.6931", "eval_margin=+0.0000", "eval_acc=-"]
    assert first.split() == [
        "step=1/63",
        "loss=0.6931",
        "margin=+0.0000",
        "acc=-",
        "chosen/tok=-2.341",
        "grad=3.20",
        "lr=0.00e+00",
        "eta=-",
    ]
    # A figure that comes later goes to the end, before the eta.
    assert second.split()[:8] == [
        "step=10/63",
        "loss=0.5000",
        "margin=+0.7500",
        "acc=0.812",
        "chosen/tok=-2.500",
        "grad=12.3",
        "lr=5.00e-07",
        "tok/s=10234",
    ]
    for name in ("loss=", "margin=", "acc=", "chosen/tok=", "grad=", "lr="):
        assert first.index(f" {name}") == second.index(f" {name}")
    assert "eval_ppl=11.500" in last_eval
    assert "eval_ref_kl=0.0123" in last_eval
    assert last_eval.index("eval_margin=") == first_eval.index("eval_margin=")


def test_a_lost_value_stays_readable(capsys):
    log([{"step": 3, "loss": None, "grad_norm": float("inf"), "rewards/margins": -1e6}])
    assert capsys.readouterr().out.split()[1:4] == ["loss=nan", "margin=-1.00e+06", "grad=+inf"]


def test_a_missing_figure_keeps_its_column(capsys):
    log([{"step": 1, "loss": 1.0, "grad_norm": 2.0}, {"step": 2, "grad_norm": 3.0}])
    first, second = capsys.readouterr().out.splitlines()
    assert second.split()[1] == "loss=-"
    assert first.index("grad=") == second.index("grad=")


def test_advice_in_a_log_is_one_line(capsys):
    log([]).advised(ADVICE)
    assert capsys.readouterr().out == (
        "health: warning at step 10: chosen responses lose 0.5 nats a token against step 0: "
        "likelihood displacement: both sides are pushed down; raise dpo.beta, or mix in "
        "demonstrations with sft_mix\n"
    )


def test_a_log_has_no_control_characters(capsys):
    lines = log(ROWS)
    lines.advised(ADVICE)
    lines.close()
    assert not re.search(r"[^\x20-\x7e\n]", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "label"),
    [("kto", "kl="), ("orpo", "nll="), ("orpo", "log_odds="), ("sft", "token_acc=")],
)
def test_what_matters_for_the_method(capsys, name, label):
    row = {"step": 1, "loss": 1.0, "kl": 0.1, "nll_loss": 2.0, "log_odds_chosen": 0.5}
    log([{**row, "mean_token_accuracy": 0.5}], METHODS[name]())
    assert label in capsys.readouterr().out


@pytest.mark.parametrize("method", [method() for method in METHODS.values()], ids=METHODS.keys())
def test_every_figure_that_is_shown_has_a_name_of_its_own(method):
    names = [*method.watched, *method.watched_in_evaluations]
    assert len(set(names)) == len(names)
    labels = [metric(name).label for name in names]
    assert len(set(labels)) == len(names)
    assert not {label for label in labels if " " in label}
    assert not {name for name in names if metric(name).digits == ".4g"}, "not in the table"


def test_the_forecast_counts_evaluations_and_checkpoints():
    """100 steps of 2 s; an evaluation of 10 s every 50, checkpoints of 5 s every 25."""
    pace = Pace(0, 100, 0.0, eval_every=50, save_every=25)
    pace.evaluated(10.0)  # before the first step
    now = 10.0
    for step in range(1, 26):
        pace.begin(now)
        now += 9.0 if step == 1 else 2.0  # the first pays for warm caches
        pace.end(step, now)
        if step == 3:
            assert not pace.is_known
    pace.saved()
    now += 5.0
    pace.begin(now)
    pace.end(26, now + 2.0)
    assert pace.is_known
    assert pace.a_step == pytest.approx(2.0)
    # 74 steps, evaluations at 50 and 100, checkpoints at 50, 75 and 100.
    assert pace.left(now + 2.0) == pytest.approx(74 * 2 + 2 * 10 + 3 * 5)
    wall = time.mktime((2026, 1, 5, 23, 58, 0, 0, 0, -1))
    said = pace.forecast(now + 2.0, wall)
    assert said == "plan: at 2 s a step the run ends about 2026-01-06 00:01 (in 0:03:03)"
    assert clock(wall + 60, wall) == "23:59"


def test_durations():
    assert duration(59.6) == "0:01:00"
    assert duration(90061) == "25:01:01"


def test_trends():
    assert sparkline([1, 2, 3], 8) == "▁▄▇"
    assert sparkline([0, 0, 1, 1], 2) == "▁▇"
    assert sparkline([5, 5, 5], 8) == "▄▄▄"
    assert sparkline([0, 7], 8, ascii_only=True) == "_#"
    assert sparkline([], 8) == ""


def view(width, rows=ROWS, *, height=40, utf8=True, advice=True) -> list[str]:
    now = time.monotonic()
    pace = Pace(0, 63, now - 20)
    for step in range(1, 11):
        pace.end(step, now - 10 + step)
    shown = View("dpo", DPO.watched, DPO.watched_in_evaluations, pace)
    for row in rows:
        shown.measured(row)
    if advice:
        shown.advised(ADVICE)
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if utf8 else "ascii")
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 99, 100, 140, 300])
def test_the_view_fits(width):
    lines = view(width)
    assert max(map(len, lines)) < min(width, 121)
    assert len(lines) < 24
    assert any("10/63" in line for line in lines)


def line_of(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.startswith(start))


def test_the_wide_view_holds_evaluations_in_its_table():
    lines = view(140)
    cells = line_of(lines, "reward margin").split()[2:]
    assert cells == ["+0.7500", "+0.0000", "+0.7500", "▁▇", "+1.2500", "+0.0000"]
    assert line_of(lines, "reward accuracy").split()[2:] == ["0.812", "tie", "▄", "0.750", "tie"]
    assert line_of(lines, "KL to the reference").split()[4:] == ["0.0123"]
    text = "\n".join(lines)
    assert "eval 10   at start" in text
    assert "10,234 tokens/s  peak 12.3 GiB" in text
    assert "warning at step 10: chosen responses lose" in text
    # 53 steps of a second, and nothing is known of evaluations.
    assert "0:00:53 left" in text
    assert "1 s a step" in text


def test_the_compact_view_puts_them_below():
    lines = view(80)
    assert line_of(lines, "loss").split()[1:4] == ["0.5000", "0.6931", "-0.1931"]
    at = lines.index("eval at step 10 (at start):")
    assert lines[at + 1].startswith("  loss 0.4321 (0.6931)  margin +1.2500 (+0.0000)  acc 0.750  ")
    assert lines[at + 1].endswith("  ppl 11.500")
    assert lines[at + 2] == "  ref_kl 0.0123"


def test_a_narrow_view_leaves_the_start_out():
    assert line_of(view(60), "loss").split()[1:] == ["0.5000", "-0.1931", "▇▁"]


def test_a_low_terminal_keeps_progress_and_advice():
    lines = view(80, height=15)
    assert len(lines) < 15
    assert line_of(lines, "dpo")
    assert line_of(lines, "warning at step 10")


def test_a_terminal_without_unicode():
    assert all(line.isascii() for line in view(140, utf8=False))


def test_before_the_first_row():
    lines = view(80, [], advice=False)
    assert [line for line in lines if line][-1].startswith("0:00:20 gone")


def live(**console) -> tuple[RichLiveProgress, io.StringIO]:
    file = io.StringIO()
    shown = Console(file=file, force_terminal=True, width=80, height=40, **console)
    return RichLiveProgress("dpo", DPO.watched, DPO.watched_in_evaluations, shown), file


def test_what_is_said_goes_above_the_view():
    screen, file = live()
    screen.open(Pace(0, 63, time.monotonic()), [])
    said = "saved checkpoint-10: " + "x" * 100 + " [bold]as written[/bold] :smile:"
    try:
        for row in ROWS:
            screen.measured(row)
        say(said)
        screen.advised(ADVICE)
        assert "\n" not in said
    finally:
        screen.close()
    screen.close()  # a second time is no harm
    text = file.getvalue()
    assert said in text, "neither broken nor read as markup"
    assert "health: warning at step 10: chosen" in text
    assert text.rindex(said) < text.rindex("reward margin")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"
    assert text.endswith("\n") or text.endswith("\x1b[?25h")


def test_the_last_view_stays_and_say_is_itself_again(capsys):
    screen, file = live(color_system=None)
    screen.open(Pace(0, 63, time.monotonic()), ROWS[:2])
    screen.measured(ROWS[2])
    screen.close()
    assert "reward margin" in file.getvalue().rpartition("at start")[2]
    say("interrupted")
    assert capsys.readouterr().out == "interrupted\n"


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("terminal", "environment", "drawn"),
    [
        (True, {"TERM": "xterm-256color"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_where_it_is_drawn(monkeypatch, terminal, environment, drawn):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", _Terminal() if terminal else io.StringIO())
    assert is_screen() is drawn
