"""What the process tells about itself: logs, metrics and health; the room all others may use."""

from controller.telemetry.health import HealthServer, ListenError
from controller.telemetry.logs import configure_logging
from controller.telemetry.metrics import Metrics

__all__ = ["HealthServer", "ListenError", "Metrics", "configure_logging"]
