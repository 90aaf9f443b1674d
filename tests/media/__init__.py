"""A corpus of sounds and pictures as recorders, browsers and phones make them, made by code, with the truth of each."""
