"""Mistakes that the user can mend, and stops that the user asked for."""


class UserError(Exception):
    """A mistake of the user's, told in one line without a traceback.

    The text says what was given, what is accepted, and what to do.
    """


class Interrupted(BaseException):
    """A signal asked the run to stop; what can be saved is saved, and ``resume=auto`` goes on from there.

    No ``Exception``, so that nothing that mends errors on the way takes it for one.
    """


def require(condition: bool, key: str, value: object, accepted: str) -> None:
    """Refuse the value of a key unless ``condition`` holds.

    Raises:
        UserError: naming both, and what is accepted.
    """
    if not condition:
        raise UserError(f"{key}={value}: {accepted}")
