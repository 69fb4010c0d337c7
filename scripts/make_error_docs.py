#!/usr/bin/env python3
"""Write docs/errors.md from the error codes in prefcli/error_codes.

python scripts/make_error_docs.py
"""

from __future__ import annotations

from pathlib import Path

from prefcli.error_codes import ERROR_CODES
from prefcli.error_codes.markdown import error_reference

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(error_reference(ERROR_CODES.values()), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
