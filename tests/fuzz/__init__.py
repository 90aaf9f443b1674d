"""Fuzzing of everything that reads what others wrote: `make fuzz`, `python -m fuzz --help`."""
