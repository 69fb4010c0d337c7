"""The run directory: run.json, logs, complete checkpoints, and resuming from them."""
