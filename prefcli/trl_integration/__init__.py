"""The bridge to trl: its arguments, its trainers, and the private hooks that prefcli uses."""
