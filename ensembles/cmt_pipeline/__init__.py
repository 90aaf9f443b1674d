"""Ground floor: the tensor contract, stages, pipelines, presets, label sets, limits and preprocessing.

Importing this package brings in numpy alone; Pillow, soundfile, soxr and tokenizers load where they are used.
"""

#: Of the whole distribution; pyproject.toml reads it from here.
__version__ = "0.1.0"
