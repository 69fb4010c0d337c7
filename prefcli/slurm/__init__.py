"""Slurm job files: the resources that a recipe needs, and the sbatch file that requests them."""
