"""The `cmt` command: thin, one verb a file."""
