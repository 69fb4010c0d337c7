"""Callbacks of the trainer: monitoring, samples and experiment trackers."""
