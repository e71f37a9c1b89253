"""How many files this process may have open."""

WANTED = 65_536


def raise_limit(wanted: int = WANTED) -> int | None:
    """Raise the limit of open files of this process and of those it starts, as far as the system allows.

    Many systems set it to 1024. What worker processes send, such as each tensor of a batch, is an open file.

    Args:
        wanted: the limit to aim for; a higher one is left as it is.

    Returns:
        The limit now; None where there is none, or none that is known (Windows).
    """
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    aim = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < aim:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
        except (ValueError, OSError):
            # macOS has a limit of its own below the hard one.
            return int(soft)
        soft = aim
    return int(soft)
