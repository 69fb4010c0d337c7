"""The memory of a training step: measured on fake tensors, for one device or a sharded run."""
