"""Engines: one class for each runtime of compiled stages: build, open, run, precisions, tolerance."""
