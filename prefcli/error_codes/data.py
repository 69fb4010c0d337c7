"""DAT: sources, rows and data checks."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

DATA_CODES: tuple[ErrorCode, ...] = (
    ErrorCode(
        "DAT001",
        "unreadable-file",
        "A data file can't be parsed in its format: JSON, JSON lines, CSV or Parquet, in UTF-8.",
        'rows.csv: row 2: not CSV: unexpected end of data (a quote `"` that is never closed)',
        "Fix the file at the place in the message. JSON lines have one object per line; in CSV, "
        'quote text that contains commas, quotes or line ends ("...").',
    ),
    ErrorCode(
        "DAT002",
        "no-rows",
        "A source is empty, or has no rows.",
        "data: {train: {path: empty.jsonl}}",
        "Name a file with rows. An earlier step that writes the file may have failed.",
    ),
    ErrorCode(
        "DAT003",
        "source-not-found",
        "The path of a source is neither a local file or folder nor a dataset on the hub.",
        "data: {train: {path: rows.jsno}}",
        "Correct data.*.path. Local paths are relative to the working directory; log in with "
        "`hf auth login` for a private dataset.",
    ),
    ErrorCode(
        "DAT004",
        "unsupported-file-type",
        "Supported sources are .jsonl, .json, .csv and .parquet files, folders of "
        "them, and folders written by `Dataset.save_to_disk`.",
        "data: {train: {path: rows.xlsx}}",
        "Convert the file to one of these formats.",
    ),
    ErrorCode(
        "DAT005",
        "invalid-split",
        "The split does not exist in the source, is not a name or a slice, or selects no rows.",
        "data: {train: {path: rows.jsonl, split: 'train[2:1]'}}",
        "Write one of the splits in the message, or a slice such as train[:1000] or train[90%:]. "
        "To join splits, list them as sources.",
    ),
    ErrorCode(
        "DAT006",
        "source-key-without-effect",
        "A key of the source has no effect on this kind of source, such as a revision on a file.",
        "data: {train: {path: rows.jsonl, revision: main}}",
        "Remove the key.",
    ),
    ErrorCode(
        "DAT007",
        "dataset-load-failed",
        "The datasets library can't load the dataset; the message is its own.",
        "data: {train: {path: OWNER/NAME, name: no-such-configuration}}",
        "Check name, data_files and revision of the source with `datasets.load_dataset`.",
    ),
    ErrorCode(
        "DAT008",
        "dataset-unreachable",
        "The hub is unreachable or offline mode is on, and the cache lacks the dataset.",
        "HF_HUB_OFFLINE=1 prefcli dpo recipe.yaml",
        "Run `prefcli download RECIPE` on a machine with a network and the same cache folder, or "
        "set data.*.path to a local copy.",
    ),
    ErrorCode(
        "DAT009",
        "unknown-column",
        "`data.*.columns` renames a column that the source does not have.",
        "data: {train: {path: rows.jsonl, columns: {chosen: chosn}}}",
        "Write one of the columns in the message: columns is {prefcli's name: name in the data}.",
    ),
    ErrorCode(
        "DAT010",
        "invalid-row",
        "Rows do not have the format of their source: a value has the wrong type, a conversation "
        "ends with the wrong role, or the text is not valid. Rows are grouped by cause.",
        'rows.jsonl: row 3: {"prompt": "q", "chosen": null, "rejected": "b"}',
        "Fix or remove the rows. The message has what was found and what is expected.",
    ),
    ErrorCode(
        "DAT011",
        "unknown-format",
        "The columns of the source match none of the row formats. The prompt is never derived from "
        "the common start of chosen and rejected.",
        'rows.jsonl: {"question": "q", "chosen": "a", "rejected": "b"}',
        "Rename columns with data.*.columns: {prompt: question}.",
    ),
    ErrorCode(
        "DAT012",
        "wrong-row-kind",
        "The rows have a known format that the method can't train on. Pairs also serve kto and "
        "sft, and rows labelled true also serve sft.",
        "prefcli dpo with rows of prompt, completion and label",
        "Use the method that the message names, or other data.",
    ),
    ErrorCode(
        "DAT013",
        "mixed-types",
        "Several sources of one split have different types: text in one, messages in another.",
        "data: {train: [{path: text.jsonl}, {path: chat.jsonl}]}",
        "Mix only sources of text, or only sources of messages.",
    ),
    ErrorCode(
        "DAT014",
        "data-check",
        "The share of rows with a finding exceeds a limit of data.checks: warn prints a warning, "
        "error stops the run.",
        "train: cut: 12 % of the rows, more than 10 %: a completion is cut at max_length",
        "Fix the rows as the hint says. If the share is intended, raise "
        "data.checks.NAME.warn or .error.",
    ),
    ErrorCode(
        "DAT015",
        "all-rows-dropped",
        "Every row was dropped, for the reasons in the message.",
        "data: {max_length: 4}: all rows were dropped: the prompt alone fills max_length (200)",
        "Fix the most frequent reason: fill empty texts, raise data.max_length, or correct the "
        "chat template.",
    ),
    ErrorCode(
        "DAT016",
        "single-label",
        "All rows of data.train have the same label, and kto learns from the difference between "
        "desirable and undesirable rows.",
        "prefcli kto with rows that are all labelled true",
        "Add rows with the other label, or train on the desirable rows with `prefcli sft`.",
    ),
    ErrorCode(
        "DAT017",
        "template-fails-on-row",
        "The chat template raises an exception for a row.",
        "a template with raise_exception('roles must alternate'), and two user messages in a row",
        "Change the row, or the template in model.chat_template.",
    ),
    ErrorCode(
        "DAT018",
        "no-assistant-turns",
        "`assistant_only_loss` trains on assistant turns, and the rows are text without turns.",
        "sft: {assistant_only_loss: true} with rows of text",
        "Remove sft.assistant_only_loss, or train on messages.",
    ),
    ErrorCode(
        "DAT030",
        "column-exists",
        "`prefcli score` adds columns such as reward and rank, and the data has one of these "
        "names.",
        '{"prompt": "...", "response": "...", "reward": 0.3}',
        "Rename the column in the data.",
    ),
    ErrorCode(
        "DAT031",
        "no-common-types",
        "A Parquet table has one type per column, and the rows have values of different types.",
        '{"meta": 1} and {"meta": "one"} with --output out.parquet',
        "Write .jsonl. The same command with another suffix does not score again.",
    ),
)
