"""Interruption of a run by a signal: the exception and the exit status of runs that can be resumed."""

AGAIN = 75  # exit status of an interrupted run that can be resumed: EX_TEMPFAIL


class Interrupted(Exception):
    """Raised after a checkpoint was saved because a signal asked the run to stop."""
