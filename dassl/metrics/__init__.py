from dassl.metrics.accuracy import compute_accuracy
from dassl.metrics.finite import deciding, require_finite

__all__ = ["compute_accuracy", "deciding", "require_finite"]
