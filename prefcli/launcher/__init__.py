"""Starting the processes that a recipe's launch section asks for.

LIGHT: config.py, meeting.py, signals.py, worker.py. HEAVY: start.py and agent.py, which are
imported below the border of a command.
"""
