"""Metrics, run folders, reports and exports."""
