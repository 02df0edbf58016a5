"""Names of things that a server makes, such as responses: nobody can guess them."""

import secrets


def new_id(prefix: str) -> str:
    """The prefix and 32 hexadecimal digits."""
    return prefix + secrets.token_hex(16)
