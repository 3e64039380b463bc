"""Every error a user can cause, each with the exit code of the command line."""


class KrasisError(Exception):
    """One line that says what is wrong, where, what was expected and what to do about it."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", expected: str = "", hint: str = "") -> None:
        self.what, self.where, self.expected, self.hint = what, str(where), expected, hint
        line = f"{what} ({where})" if self.where else what
        advice = "; ".join(part for part in (expected, hint) if part)
        super().__init__(f"{line}: {advice}" if advice else line)


class UsageError(KrasisError):
    """The command or call was used in a way it does not support."""

    exit_code = 2


class InputError(KrasisError):
    """A checkpoint, pack, profile, tensor or text is not what it should be."""

    exit_code = 3


class FitError(KrasisError):
    """Something needs more memory or disk than there is."""

    exit_code = 4
