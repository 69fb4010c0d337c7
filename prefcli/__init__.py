"""prefcli: preference tuning of language models from one typed recipe."""

__version__ = "0.1.0"
