"""Servers that a user might pick instead, each as its own documentation starts: same weights, same inputs."""
