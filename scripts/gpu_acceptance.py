#!/usr/bin/env python3
"""Check in one command that prefcli is correct and fast on this machine's GPU.

    python scripts/gpu_acceptance.py --out DIR [--seconds 510] [--parts kernels,speed]
    python scripts/gpu_acceptance.py --cpu --quick

Each part runs in a separate process with a time limit. Its results are written after each part to
DIR/results.json, DIR/table.md and DIR/log.txt. `--cpu --quick` runs every part with tiny sizes on a
CPU, which tests the script itself. Exit code 0: every required row has passed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    if "--part" in sys.argv:
        from scripts.acceptance.child import main
    elif "--worker" in sys.argv:
        from scripts.acceptance.worker import main
    elif "--predict" in sys.argv:
        from scripts.acceptance.predict import main
    else:
        from scripts.acceptance.parent import main
    sys.exit(main())
