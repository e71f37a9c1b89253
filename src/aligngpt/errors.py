"""The base class of this package's exceptions."""


class AlignGPTError(Exception):
    """An error that the user can act on.

    The message names the file and record, what was expected, what was found and what to do.
    The command line prints it as one line and exits with code 1; library users can catch this base class.
    """
