"""Live sessions over a WebSocket: turns cut from speech, answered with face and words, with state and policy."""
