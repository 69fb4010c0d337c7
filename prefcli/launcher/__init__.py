"""Starts the processes that a recipe's launch section asks for.

LIGHT: accelerate_config, rendezvous, signal_forwarding. HEAVY: launch and agent, which commands
import below their border.
"""
