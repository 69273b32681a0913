"""The memory that a run will take, found on tensors that hold no values before anything is loaded."""
