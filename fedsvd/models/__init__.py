"""Frozen backbones, and the classifier that is built on one."""
