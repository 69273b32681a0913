"""Where clients execute; each engine is a Flower `Grid` and never changes a result."""
