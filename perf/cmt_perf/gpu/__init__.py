"""`make bench-gpu`: this project on one GPU, from a folder that travels to it."""
