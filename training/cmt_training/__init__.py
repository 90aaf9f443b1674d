"""Data sets, training and evaluation of Cross-Modal Transformers and of the models that they are compared with."""
