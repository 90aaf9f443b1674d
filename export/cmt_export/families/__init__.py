"""Encoder families, one a file; `cmt_export.family` says what each has to say of itself."""
