"""Triton's python backend loads this; the work is in cmt_server.adapters."""

from cmt_server.adapters import EngineModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
