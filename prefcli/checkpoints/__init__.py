"""The run folder: what is written, whole, and where a run goes on."""
