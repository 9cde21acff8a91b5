"""Which token this process shows to a Ray cluster. Ray decides when it is imported, so this module does not import it.

Ray takes the token from RAY_AUTH_TOKEN, else from the file RAY_AUTH_TOKEN_PATH, else from ~/.ray/auth_token, and shows
it where RAY_AUTH_MODE is token. For a cluster that is joined or sent a job to, raygrad makes that the default.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from raygrad.errors import BadInput


@dataclass(frozen=True)
class Token:
    """A token and where it was found, in words. Its value is never shown."""

    value: str = field(repr=False)
    source: str


def configured() -> Token | None:
    """The token that is configured here; None if there is none, or if RAY_AUTH_MODE says that none is to be shown.

    Raises BadInput for one that cannot be a token; what it is instead is not told.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    given = os.environ.get("RAY_AUTH_TOKEN")
    if given:
        return _checked(Token(given.strip(), "RAY_AUTH_TOKEN"))
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return _checked(Token(value, str(path))) if value else None


def _checked(token: Token) -> Token:
    if not (token.value.isascii() and token.value.isprintable()) or " " in token.value:
        raise BadInput(f"the token in {token.source} is damaged: it is one word, and this has spaces or line breaks")
    return token


def check() -> None:
    """Refuse to show a token where there is none. Ray would end the process without a word."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and configured() is None:
        raise BadInput(
            "RAY_AUTH_MODE is token, and there is no token here; copy the cluster's ~/.ray/auth_token to this machine, "
            "or name its file in RAY_AUTH_TOKEN_PATH"
        )


def use_by_default() -> None:
    """Show the configured token unless RAY_AUTH_MODE says otherwise. Has an effect before Ray is imported only."""
    if "RAY_AUTH_MODE" not in os.environ and configured() is not None:
        os.environ["RAY_AUTH_MODE"] = "token"


def missing(where: str) -> str:
    """The sentence for a cluster that asks for a token where none is shown."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return f"{where} asks for a token, but RAY_AUTH_MODE is {os.environ['RAY_AUTH_MODE']} here; set it to token"
    return (
        f"{where} asks for a token, and there is none here; copy the cluster's ~/.ray/auth_token to this machine, or "
        "name its file in RAY_AUTH_TOKEN_PATH"
    )


def wrong(where: str) -> str:
    """The sentence for a cluster that refuses the token."""
    token = configured()
    source = token.source if token is not None else "what was shown"
    return f"{where} refuses the token in {source}; it must be the cluster's own (there: ray get-auth-token)"
