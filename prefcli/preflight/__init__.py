"""Checks that run before training, in order; a run and `--dry-run` share them."""
