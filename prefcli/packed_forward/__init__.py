"""A forward pass without padding and repeated prompts, and with logits only at labels."""
