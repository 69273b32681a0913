"""What a model is trained for (`task=`): per-example losses and metrics from a model's output."""
