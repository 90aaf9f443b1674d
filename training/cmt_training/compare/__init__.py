"""A ladder of fusions on any data set: frozen encoders' tokens, trained rungs, figures paired over seeds and people."""
