"""The images of `k8s/` without Docker or a registry: their instructions, run on Debian; sizes, contents, budgets."""
