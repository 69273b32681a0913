"""How a frozen layer gets its factors, and a model its head."""
