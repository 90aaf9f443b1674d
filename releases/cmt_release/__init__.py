"""Releases: manifests, the folders and stores that hold them, pruning, and locks on what is being worked in."""
