"""Local training of one client, and the model, tokens and hooks that a process keeps for it."""
