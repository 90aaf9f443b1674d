"""Finds and runs tritonserver, installs releases into the repository it serves, and adapts engines to its backend.

Importing this package loads neither a framework nor a Triton client.
"""
