"""What stands around the steps and the loss of trl's trainer."""
