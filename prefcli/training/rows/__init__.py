"""What is trained on, ready for trl."""
