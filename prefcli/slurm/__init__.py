"""Job files: what a recipe needs of a cluster, and the file that asks for it."""
