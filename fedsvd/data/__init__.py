"""Tasks, splits, partitions, tokens and batches."""
