"""The benchmark: methods on tasks with room, each tuned alike, at verified budgets."""
