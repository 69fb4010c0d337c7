"""Progress on literal rows: lines for a log, a live view for a terminal. Torch is blocked."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from rich.console import Console

from prefcli.console import detail, is_screen, print_above, say, say_brief, show_details
from prefcli.health.base import Advice
from prefcli.methods import METHODS
from prefcli.text import format_duration
from prefcli.training.progress import PlainProgress, RichLiveProgress
from prefcli.training.progress.eta import Pace, format_clock
from prefcli.training.progress.live_view import LiveView, Sparkline

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
    rule="displacement",
    level="warn",
    step=10,
    seen="chosen responses lost 0.5 nats per token",
    means="likelihood displacement: both sides are pushed down",
    change="raise dpo.beta, or mix in demonstrations with sft_mix",
)


@pytest.fixture(autouse=True)
def _normal_console():
    yield
    print_above(None)


def log(rows, method=DPO, total=63) -> PlainProgress:
    lines = PlainProgress(method.watched, method.watched_in_evaluations)
    lines.start(Pace(0, total, time.monotonic()), [])
    for row in rows:
        lines.show_row(row)
    return lines


def test_plain_lines_are_aligned_by_metric(capsys):
    log(ROWS)
    first_eval, first, second, last_eval = capsys.readouterr().out.splitlines()
    # Policy and reference agree at the start, so every pair is a tie.
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
    # A metric that comes later is last, before the eta.
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


def test_plain_lines_show_values_that_are_not_finite(capsys):
    log([{"step": 3, "loss": None, "grad_norm": float("inf"), "rewards/margins": -1e6}])
    assert capsys.readouterr().out.split()[1:4] == ["loss=nan", "margin=-1.00e+06", "grad=+inf"]


def test_plain_lines_keep_the_column_of_a_missing_metric(capsys):
    log([{"step": 1, "loss": 1.0, "grad_norm": 2.0}, {"step": 2, "grad_norm": 3.0}])
    first, second = capsys.readouterr().out.splitlines()
    assert second.split()[1] == "loss=-"
    assert first.index("grad=") == second.index("grad=")


def test_plain_advice_is_one_line(capsys):
    log([]).show_advice(ADVICE)
    assert capsys.readouterr().out == (
        "health: warning at step 10: chosen responses lost 0.5 nats per token: "
        "likelihood displacement: both sides are pushed down; raise dpo.beta, or mix in "
        "demonstrations with sft_mix\n"
    )


def test_plain_lines_have_no_control_characters(capsys):
    lines = log(ROWS)
    lines.show_advice(ADVICE)
    lines.stop()
    assert not re.search(r"[^\x20-\x7e\n]", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "label"),
    [("kto", "kl="), ("orpo", "nll="), ("orpo", "log_odds="), ("sft", "token_acc=")],
)
def test_plain_lines_show_the_metrics_of_the_method(capsys, name, label):
    row = {"step": 1, "loss": 1.0, "kl": 0.1, "nll_loss": 2.0, "log_odds_chosen": 0.5}
    log([{**row, "mean_token_accuracy": 0.5}], METHODS[name]())
    assert label in capsys.readouterr().out


def test_pace_forecast_counts_evaluations_and_checkpoints():
    """100 steps of 2 s; an evaluation of 10 s every 50, checkpoints of 5 s every 25."""
    pace = Pace(0, 100, 0.0, eval_every=50, save_every=25)
    pace.evaluated(10.0)  # before the first step
    now = 10.0
    for step in range(1, 26):
        pace.begin(now)
        now += 9.0 if step == 1 else 2.0  # the first includes warm-up
        pace.end(step, now)
        if step == 3:
            assert not pace.is_known
    pace.saved()
    now += 5.0
    pace.begin(now)
    pace.end(26, now + 2.0)
    assert pace.is_known
    assert pace.seconds_per_step == pytest.approx(2.0)
    # 74 steps, evaluations at 50 and 100, checkpoints at 50, 75 and 100.
    assert pace.remaining(now + 2.0) == pytest.approx(74 * 2 + 2 * 10 + 3 * 5)
    wall = time.mktime((2026, 1, 5, 23, 58, 0, 0, 0, -1))
    assert pace.forecast(now + 2.0, wall) == (
        "plan: at 2 s per step the run ends at about 2026-01-06 00:01 (in 0:03:03)"
    )


def test_format_clock_omits_the_date_of_today():
    wall = time.mktime((2026, 1, 5, 23, 58, 0, 0, 0, -1))
    assert format_clock(wall + 60, wall) == "23:59"


def test_format_duration_rounds_to_seconds():
    assert format_duration(59.6) == "0:01:00"
    assert format_duration(90061) == "25:01:01"


@pytest.mark.parametrize(
    ("values", "width", "text"),
    [
        ([1, 2, 3], 8, "▁▄▇"),
        ([0, 0, 1, 1], 2, "▁▇"),
        ([5, 5, 5], 8, "▄▄▄"),
        ([], 8, ""),
    ],
)
def test_sparkline_averages_neighbours_to_fit(values, width, text):
    assert Sparkline(values).text(width) == text


def test_sparkline_without_unicode_is_ascii():
    assert Sparkline([0, 7]).text(8, ascii_only=True) == "_#"


def view(width, rows=ROWS, *, height=40, utf8=True, advice=True) -> list[str]:
    now = time.monotonic()
    pace = Pace(0, 63, now - 20)
    for step in range(1, 11):
        pace.end(step, now - 10 + step)
    shown = LiveView("dpo", DPO.watched, DPO.watched_in_evaluations, pace)
    for row in rows:
        shown.add_row(row)
    if advice:
        shown.add_advice(ADVICE)
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if utf8 else "ascii")
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 99, 100, 140, 300])
def test_live_view_fits_any_width(width):
    lines = view(width)
    assert max(map(len, lines)) < min(width, 121)
    assert len(lines) < 26
    assert any("10/63" in line for line in lines)


def line_of(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.startswith(start))


def test_live_view_of_a_wide_terminal_has_evaluations_in_its_table():
    lines = view(140)
    cells = line_of(lines, "reward margin").split()[2:]
    assert cells == ["+0.7500", "+0.0000", "+0.7500", "▁▇", "+1.2500", "+0.0000"]
    assert line_of(lines, "reward accuracy").split()[2:] == ["0.812", "tie", "▄", "0.750", "tie"]
    assert line_of(lines, "KL to the reference").split()[4:] == ["0.0123"]
    assert "eval 10" in "\n".join(lines)


def test_live_view_shows_pace_memory_and_advice():
    text = "\n".join(view(140))
    assert "10,234 tokens/s  peak 12.3 GiB" in text
    assert "warning at step 10: chosen responses lost" in text
    # 53 steps of a second; evaluations have not been timed yet.
    assert "0:00:53 left" in text
    assert "1 s per step" in text


def test_live_view_of_80_columns_has_evaluations_below_its_table():
    lines = view(80)
    assert line_of(lines, "loss").split()[1:4] == ["0.5000", "0.6931", "-0.1931"]
    at = lines.index("eval at step 10 (at start):")
    text = " ".join(" ".join(lines[at + 1 : at + 4]).split())
    expected = "loss 0.4321 (0.6931) reward margin +1.2500 (+0.0000) reward accuracy 0.750"
    assert text.startswith(expected)
    assert "KL to the reference 0.0123" in text


def test_live_view_of_60_columns_omits_the_start():
    assert line_of(view(60), "loss").split()[1:] == ["0.5000", "-0.1931", "▇▁"]


def test_live_view_of_40_columns_never_truncates_a_number():
    assert line_of(view(40), "loss").split()[1:2] == ["0.5000"]


def test_live_view_of_a_low_terminal_keeps_progress_and_advice():
    lines = view(80, height=15)
    assert len(lines) < 15
    assert line_of(lines, "dpo")
    assert line_of(lines, "warning at step 10")


def test_live_view_without_unicode_is_ascii():
    assert all(line.isascii() for line in view(140, utf8=False))


def test_live_view_before_the_first_row_shows_the_elapsed_time():
    lines = view(80, [], advice=False)
    assert [line for line in lines if line][-1].startswith("0:00:20 elapsed")


def live(**console) -> tuple[RichLiveProgress, io.StringIO]:
    file = io.StringIO()
    shown = Console(file=file, force_terminal=True, width=80, height=40, **console)
    return RichLiveProgress("dpo", DPO.watched, DPO.watched_in_evaluations, shown), file


def test_rich_live_prints_log_lines_above_the_view():
    display, file = live()
    display.start(Pace(0, 63, time.monotonic()), [])
    message = "saved checkpoint-10: " + "x" * 100 + " [bold]as written[/bold] :smile:"
    try:
        for row in ROWS:
            display.show_row(row)
        say(message)
        display.show_advice(ADVICE)
    finally:
        display.stop()
    display.stop()  # a second time is allowed
    text = file.getvalue()
    assert message in text, "neither wrapped nor read as markup"
    assert "health: warning at step 10: chosen" in text
    assert text.rindex(message) < text.rindex("reward margin")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"
    assert text.endswith("\n") or text.endswith("\x1b[?25h")


def test_rich_live_that_is_stopped_leaves_the_last_view(capsys):
    display, file = live(color_system=None)
    display.start(Pace(0, 63, time.monotonic()), ROWS[:2])
    display.show_row(ROWS[2])
    display.stop()
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
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_is_screen_needs_a_capable_terminal(monkeypatch, terminal, environment, drawn):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", _Terminal() if terminal else io.StringIO())
    assert is_screen() is drawn


@pytest.mark.parametrize("colours", [True, False])
def test_say_on_a_terminal_colours_labels_and_keeps_words_whole(monkeypatch, colours):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "" if colours else "1")
    monkeypatch.setattr(sys, "stdout", _Terminal())
    say("warning: a sentence that is longer than thirty columns", "    -> do this")
    assert sys.stdout.getvalue().splitlines() == (
        [
            "\x1b[33mwarning:\x1b[0m a sentence that is",
            "    longer than thirty columns",
            "    \x1b[36m->\x1b[0m do this",
        ]
        if colours
        else [
            "warning: a sentence that is",
            "    longer than thirty columns",
            "    -> do this",
        ]
    )


def test_say_brief_on_a_terminal_is_brief_without_details(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    for terminal, verbose, expected in (
        (True, False, "short\n"),
        (True, True, "long\ndetail\n"),
        (False, False, "long\ndetail\n"),
    ):
        monkeypatch.setattr(sys, "stdout", _Terminal() if terminal else io.StringIO())
        show_details(verbose)
        say_brief(["short"], ["long"])
        detail("detail")
        show_details(False)
        assert sys.stdout.getvalue() == expected
