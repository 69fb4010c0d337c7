"""Scoring rows with less work: no padding, no prompt twice, no projection without a label."""
