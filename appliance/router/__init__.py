"""From a request at the door to its answer: routes, queue, choice of engines, both legs."""

from appliance.router.router import Router

__all__ = ["Router"]
