"""Sweeps over a Ray cluster: trials one after another in processes of it."""
