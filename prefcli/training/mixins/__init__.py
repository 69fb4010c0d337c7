"""Extensions of trl's trainers that need its private hooks; anything else is a callback."""
