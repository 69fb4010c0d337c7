"""What proves a recipe before it runs: counted, sized, and rehearsed on tensors without memory."""
