from dassl.metrics.accuracy import accuracies, compute_accuracy
from dassl.metrics.finite import deciding, require_finite

__all__ = ["accuracies", "compute_accuracy", "deciding", "require_finite"]
