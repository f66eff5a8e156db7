"""The retry policy: which answers are worth another attempt, and when it is made."""

from __future__ import annotations

from image_loader.model import Failure

BUSY_STATUSES = frozenset({429, 503})
"""The host is busy: these are its refusals, not failures of the image (RFC 6585, 4; RFC 9110, 15.6.4)."""
TRANSIENT_STATUSES = frozenset({408, 425, 500, 502, 504, 509, 520, 521, 522, 523, 524, 529, 530})
"""Another attempt at the image may well succeed; 520 to 530 are a CDN's words for an origin that failed."""
REFUSALS = 2
"""How often an image may be refused by a busy host that lets others through: after that, it is the image's failure."""
LATER = 10
"""How many other jobs of its host come first when an image was refused."""


def is_refusal(failure: Failure) -> bool:
    """Tell whether a failure says that the host is busy.

    >>> from image_loader.model import Reason
    >>> [is_refusal(Failure(Reason.HTTP_STATUS, "", status)) for status in (429, 503, 500)]
    [True, True, False]
    """
    return failure.http_status in BUSY_STATUSES


def delay(attempts: int, longest: float, chance: float) -> float:
    """Return the seconds before the next attempt: 1, 2, 4 …, at most ``longest``, with equal jitter.

    Half of it is fixed, the other half is multiplied by ``chance``, a number from 0 to 1.

    >>> [delay(attempts, 60.0, 0.5) for attempts in (1, 2, 3, 100)]
    [0.75, 1.5, 3.0, 45.0]
    """
    full = min(longest, 2.0 ** min(attempts - 1, 60))
    return full / 2 * (1 + chance)
