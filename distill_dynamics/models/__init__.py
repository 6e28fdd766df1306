"""timm's models: made, given weights from files of many kinds, and written where timm finds them."""

from typing import TYPE_CHECKING

from distill_dynamics.lazy import attach

if TYPE_CHECKING:
    from distill_dynamics.models.students import Lift, WideLast

_HOMES = {
    "Lift": "students",
    "WideLast": "students",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
