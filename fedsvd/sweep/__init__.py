"""Sweeps over a Ray cluster: a task a trial."""
