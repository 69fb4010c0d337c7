"""Inference without training: log-probabilities, the check-sft gate, generation."""
