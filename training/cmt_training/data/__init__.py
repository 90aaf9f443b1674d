"""Data sets as they lie in their owners' folders -> DataSet; and the bytes of one image or sound out of them."""

from cmt_training.data.choice import DataChoice
from cmt_training.data.folder import KINDS, Kind, open_data_set

__all__ = ["KINDS", "DataChoice", "Kind", "open_data_set"]
