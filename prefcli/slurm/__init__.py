"""Slurm job files: the resources that a recipe needs, and the sbatch file that requests them."""

DEFAULT_GRACE = 300
"""Seconds before the time limit at which Slurm signals the job, so that it saves a checkpoint."""
