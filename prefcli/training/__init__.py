"""Training runs and dry-runs: start, checks, resume and saving of the model."""
