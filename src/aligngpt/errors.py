"""The exception every error of this package derives from."""


class AlignGPTError(Exception):
    """An error a person can act on.

    The message names the file and record it is about, what was expected, what was found and what to do.
    The command line prints it as one line and exits with code 1; library users can catch it as one family.
    """
