"""The generated tri-modal corpus: drawn faces, synthesised speech and sentences of a grammar, with their emotions."""
