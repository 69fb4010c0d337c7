"""A run: rehearsed, started, watched, resumed and saved."""
