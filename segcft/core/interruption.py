"""A run that was asked to stop, by a signal or a scheduler, and can go on."""

AGAIN = 75  # exit status of such a run: EX_TEMPFAIL


class Interrupted(Exception):
    """The run was asked to stop; it has saved."""
