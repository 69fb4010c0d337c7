"""What a run leaves for its readers: report.html, and the card of its model."""

from __future__ import annotations

from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import say, warn


def write_report_and_card(folder: RunDir, *, about: str | None = None) -> None:
    """To be called when run.json is complete, on the main process.

    about: the method in a sentence; given where there is a model/ to write a card for.
    """
    try:
        from prefcli.report.model_card import write_card
        from prefcli.report.run_page import write_report

        if about is not None:
            write_card(folder.path, about)
        say(f"report: {write_report(folder.path)}")
    except Exception as error:  # a page must not cost a trained model
        warn(
            f"no report could be written: {error or type(error).__name__}; "
            f"`prefcli report {folder.path}` tries again"
        )
