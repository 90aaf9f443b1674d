"""Speech probabilities -> turns: when somebody began to speak, paused, went on and ended. Pure, on media time.

Values from silero-vad's own iterator (github.com/snakers4/silero-vad), and from what voice assistants take for the
silence that ends a turn, 0.25 to 0.8 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Why = Literal["silence", "length", "asked", "gap"]


@dataclass(frozen=True)
class TurnOptions:
    """enter, exit: probabilities of speech and of silence. min_speech_s: less of it is a noise. early_s: silence after
    which a turn may well be over; min_silence_s: after which it is. pad_s: kept before and after; most_s: of a turn."""

    enter: float = 0.5
    exit: float = 0.35
    min_speech_s: float = 0.25
    early_s: float = 0.16
    min_silence_s: float = 0.4
    pad_s: float = 0.1
    most_s: float = 15.0


@dataclass(frozen=True)
class Began:
    """Somebody speaks, since start_s."""

    start_s: float


@dataclass(frozen=True)
class Paused:
    """What would be the turn if nothing more came."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Resumed:
    """More came."""


@dataclass(frozen=True)
class Ended:
    start_s: float
    end_s: float
    why: Why


Event: TypeAlias = Began | Paused | Resumed | Ended


class TurnCutter:
    """Fed one chunk's probability after the other."""

    def __init__(self, options: TurnOptions | None = None) -> None:
        self.options = options or TurnOptions()
        self._last_end_s = 0.0
        self._start_s: float | None = None
        self._silent_s: float | None = None
        self._heard_s = 0.0
        self._began = self._paused = False

    @property
    def since_s(self) -> float | None:
        """Where the sound begins that a turn may need; None while nobody speaks."""
        return self._start_s

    def feed(self, probability: float, start_s: float, end_s: float) -> list[Event]:
        """What a chunk of sound changes."""
        if self._start_s is None:
            if probability < self.options.enter:
                return []
            self._start_s = max(self._last_end_s, start_s - self.options.pad_s)
        events: list[Event] = []
        if probability >= (self.options.exit if self._silent_s is None else self.options.enter):
            self._heard_s += end_s - start_s
            self._silent_s = None
            if self._paused:
                self._paused = False
                events.append(Resumed())
        elif self._silent_s is None:
            self._silent_s = start_s
        if not self._began and self._heard_s >= self.options.min_speech_s:
            self._began = True
            events.append(Began(_ms(self._start_s)))
        return events + self._after(end_s)

    def skip(self, to_s: float) -> None:
        """Sound begins here: no turn begins before."""
        self._last_end_s = to_s

    def end(self, at_s: float, why: Why) -> list[Event]:
        """The turn is over, whatever is heard: nothing where nobody spoke."""
        began, start_s = self._began, self._start_s
        self._forget()
        if not began or start_s is None or at_s <= start_s:
            return []
        self._last_end_s = at_s
        return [Ended(_ms(start_s), _ms(at_s), why)]

    def _after(self, now_s: float) -> list[Event]:
        """What has lasted long enough by now."""
        assert self._start_s is not None
        quiet_s = 0.0 if self._silent_s is None else now_s - self._silent_s
        if not self._began:
            if quiet_s >= self.options.early_s:
                self._forget()
            return []
        end_s = now_s - quiet_s + self.options.pad_s
        if quiet_s >= self.options.min_silence_s:
            return self.end(end_s, "silence")
        if now_s - self._start_s >= self.options.most_s:
            ended = self.end(now_s, "length")
            self._start_s = now_s  # if more comes, without a hole
            return ended
        if quiet_s >= self.options.early_s and not self._paused:
            self._paused = True
            return [Paused(_ms(self._start_s), _ms(end_s))]
        return []

    def _forget(self) -> None:
        self._start_s = self._silent_s = None
        self._heard_s = 0.0
        self._began = self._paused = False


def _ms(time_s: float) -> float:
    """Whole milliseconds: what is told is what is reckoned with."""
    return round(time_s, 3)
