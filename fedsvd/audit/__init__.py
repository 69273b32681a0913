"""Measuring whether a configuration gives the privacy that it prints: `python -m fedsvd.audit`."""
