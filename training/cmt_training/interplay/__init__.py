"""A ladder of fusions on the generated corpus, with interplay and without: `python -m cmt_training.interplay`."""
