"""What runs a model without training it: scoring, the SFT gate, sampling."""
