"""Hugging Face Hub: what is in the cache, which commits a run uses, and downloads."""
