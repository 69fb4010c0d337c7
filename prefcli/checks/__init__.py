"""LIGHT shelf: one file a health rule; history of metric rows -> advice, pure."""
