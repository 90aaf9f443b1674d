"""Load, measurements and reports."""
