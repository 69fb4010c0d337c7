"""The hub's cache: what is in it, which commits those are, and how it is filled."""
