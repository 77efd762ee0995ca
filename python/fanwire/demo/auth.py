"""Who is asking. The one part of the demo that must not be copied as it is."""

from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer


def user_of_token(token: str) -> str | None:
    """The user that a token stands for, or None when it stands for nobody.

    DEMO ONLY: any non-empty token is taken for the name of its user. A real application verifies a
    session or a signed token here, and nothing else of the demo has to change.
    """
    return token.strip() or None


def current_user(
    credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())],
) -> str:
    """The user of a plain HTTP request, from its ``Authorization: Bearer`` header."""
    user_id = user_of_token(credentials.credentials)
    if user_id is None:
        raise HTTPException(401, "The token is empty.")
    return user_id


CurrentUser = Annotated[str, Depends(current_user)]
