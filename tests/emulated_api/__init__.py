"""An emulation of a Kubernetes API server and of what moves behind it. Not the real thing: see each module's head.

`server.EmulatedApi` is a real HTTP server on 127.0.0.1 that the official client talks to; tests that are given a
cluster by CMT_TEST_KUBECONFIG leave it alone.
"""
