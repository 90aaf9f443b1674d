"""Tokens that have to be bound across modalities, and a ladder of fusions: `python -m cmt_training.binding`."""
