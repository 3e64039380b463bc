"""Stop strings over streamed text."""


class StopText:
    """Passes text on, holding back what may be the start of a stop string. `hit` is set once one was found.

    The stop string that is complete first ends the text, whatever pieces the text comes in; of two that end at the same
    character, the longer.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The part of all text so far that is now safe to show; nothing at or after a stop string ever is."""
        self._held += text
        starts = ((self._held.find(stop), stop) for stop in self._stops)
        found = [(at + len(stop), at) for at, stop in starts if at >= 0]
        if found:
            self.hit = True
            return self._release(min(found)[1])
        return self._release(len(self._held) - self._pending())

    def flush(self) -> str:
        """What is still held when the text ends without a stop string."""
        return "" if self.hit else self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _pending(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        ends = (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(ends, default=0)
