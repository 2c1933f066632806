"""``version``: which crossdock this is."""

from controller import __version__
from controller.cli.flags import Given
from controller.cli.session import DONE, PROGRAM


def version(*, session: Given) -> int:
    """Print the version.

    Args:
        session: the world outside.

    Returns:
        The exit code.
    """
    session.say(f"{PROGRAM} {__version__}")
    return DONE
