"""Instruction rows as text: a template around instruction and input, instead of a chat."""

from __future__ import annotations

from prefcli.formats.base import Raw, RowError, describe

_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."
_ALPACA = f"{_TASK}. {_REQUEST}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n"
_ALPACA_INPUT = (
    f"{_TASK}, paired with an input that provides further context. {_REQUEST}\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""Of Stanford Alpaca, with the line end that axolotl and the later Alpacas write after Response."""


def write_prompt(row: Raw, template: str) -> Raw:
    """Return the row with a text `prompt`, and `output` as its completion.

    template: alpaca, or a text with {instruction} and {input}. Raises RowError for a row without
    an instruction.
    """
    instruction, given = row.get("instruction"), row.get("input")
    if not isinstance(instruction, str):
        raise RowError(f"{describe(instruction)} in 'instruction'", "text, for prompt_template")
    if not isinstance(given, str | None):
        raise RowError(f"{describe(given)} in 'input'", "text")
    if template == "alpaca":
        template = _ALPACA_INPUT if given else _ALPACA
    # One after the other would also replace {input} inside an instruction.
    before, _, after = template.partition("{instruction}")
    before, after = (part.replace("{input}", given or "") for part in (before, after))
    others = {name: value for name, value in row.items() if name not in ("instruction", "input")}
    if "output" in others:
        others["completion"] = others.pop("output")
    return others | {"prompt": before + instruction + after}
