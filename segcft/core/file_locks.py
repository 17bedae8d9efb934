"""Locks that processes of one machine hold on files and folders, and that the system takes back when they end."""


def lock(handle: int, wait: bool = True) -> bool:
    """Take the exclusive lock of an open file or folder.

    Args:
        handle: Descriptor; closing it gives the lock back.
        wait: Until another process gives it back.

    Returns:
        Whether it was taken; always, if waited for.

    Raises:
        ValueError: On a system without such locks: Windows.
    """
    try:
        import fcntl  # lazily: of Linux and macOS alone
    except ImportError as error:
        raise ValueError("segcft runs on Linux and macOS: this system has no fcntl; on Windows use WSL") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
