"""A node of a deployment: its owner's policy, what a server may choose, its account, its answers."""
