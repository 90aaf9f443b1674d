"""Lints Triton model repositories and running servers for known traps: `diagnose` in diagnosis.py."""
