"""What the service counts, and the HTTP server that shows it: /metrics, /healthz, /readyz.

histogram.py   a distribution that one thread adds to, cheaply
model.py       what is counted of one model version: an engine's `Observer`
service.py     all that is shown, as a Prometheus collector
triton.py      the same under Triton's names, where they were asked for
http.py        the server
"""

from aclserve_server.metrics.http import MetricsServer
from aclserve_server.metrics.service import ServerMetrics

__all__ = ["MetricsServer", "ServerMetrics"]
