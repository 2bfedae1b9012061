"""How many cases a property of Python draws; tests say how many, profiles how many times as many.

Which cases is the profile's as well: `tests/conftest.py`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

# So many times as many as `make test` draws: some minutes for all properties.
SOAK_RATIO = 30

_DEFAULT = settings.get_profile("default").max_examples


def register() -> None:
    """Profiles: `ci`, of hypothesis itself, always draws the same cases; `soak` many others."""
    settings.register_profile(
        "soak",
        settings.get_profile("ci"),
        derandomize=False,
        max_examples=_DEFAULT * SOAK_RATIO,
    )
    settings.load_profile("ci")


def cases(count: int, *waived: HealthCheck, **others: Any) -> settings:
    """Settings for `count` cases, more where the profile asks for more."""
    profile = settings()
    return settings(
        max_examples=count * profile.max_examples // _DEFAULT,
        suppress_health_check=[*profile.suppress_health_check, *waived],
        **others,
    )
