"""JDG: judges of completions, which are programs of the user."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

JUDGE_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        "JDG001",
        "judge-cannot-start",
        "The program or the function of the judge is not there, can't be started, or can't be "
        "imported.",
        "judge: {executable: {command: [judge.py]}}  # without ./ and execute permission",
        "Write the path of the program, or the interpreter first: [python, judge.py]; of a "
        "function, FILE.py:NAME.",
    ),
    ErrorCode(
        "JDG002",
        "judge-ended",
        "The program ended, or closed its output, before it had answered all rows. The message has "
        "the row, how the program ended and the end of its standard error.",
        "a judge that raises an exception for an empty completion",
        "Correct the program and run the same command again: completions that are judged are not "
        "judged again. A judge reads lines until the end of its standard input.",
    ),
    ErrorCode(
        "JDG003",
        "judge-too-slow",
        "The judge gave no answer within its time limit.",
        "a program that prints into a buffer and does not flush it",
        "Flush standard output after each line, or raise judge.executable.timeout or "
        "judge.function.timeout. The same command continues.",
    ),
    ErrorCode(
        "JDG004",
        "judge-answer-invalid",
        "A line that the program wrote is not a JSON object with a score, or has the id of a row "
        "that does not wait for an answer.",
        "print('loading the model ...')",
        'Print {"id": ID, "score": NUMBER} on one line, and everything else to standard error. The '
        "same command continues.",
    ),
    ErrorCode(
        "JDG005",
        "score-is-not-a-number",
        "A judge gave NaN, infinity, or something else that is not a number.",
        '{"id": 7, "score": NaN}',
        "Return null (None in Python) for a completion that can't be scored: it is dropped and "
        "counted.",
    ),
    ErrorCode(
        "JDG006",
        "judge-raised",
        "The function of the judge raised an exception. The message has its line and the first of "
        "the completions that it was called with.",
        "a function that divides by the number of words of an empty completion",
        "Correct the function and run the same command again: it continues.",
    ),
    ErrorCode(
        "JDG007",
        "number-of-scores",
        "The function of the judge returned another number of scores than it got completions, or "
        "no list of scores.",
        "return [score(c) for c in completions if c]",
        "Return one number per completion, in their order; None for one that can't be scored.",
    ),
    ErrorCode(
        "JDG008",
        "no-judge",
        "`pairs`, `iterate` and `rloo` need a judge that scores new completions.",
        "prefcli pairs dpo.yaml --output pairs.jsonl",
        "Add a section judge with a reward_model, implicit_reward, function, executable or scores.",
    ),
    ErrorCode(
        "JDG009",
        "no-scores",
        "The rows of judge.scores have no column of scores.",
        '{"prompt": "Hi", "responses": ["Hello.", "What?"]}',
        "Name the columns with judge.scores.columns, or score the rows first: prefcli score.",
    ),
)
