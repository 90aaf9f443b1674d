"""This project on a GPU: `make bench-gpu` out of an archive that travels, `make check-gpu` in the Triton image."""
