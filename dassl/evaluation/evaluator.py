"""From logits to the numbers of a table."""
import os
from collections import OrderedDict

import torch
from tabulate import tabulate

from dassl.metrics import require_finite
from dassl.utils import Registry, printable, rank, write_atomically

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, lab2cname=None, **kwargs):
    """The evaluator named by TEST.EVALUATOR."""
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, lab2cname=lab2cname, **kwargs)


class EvaluatorBase:
    """`reset()`, then `process` for each batch, then `evaluate()` gives an OrderedDict of numbers."""

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self):
        raise NotImplementedError

    def process(self, mo, gt):
        raise NotImplementedError

    def evaluate(self):
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Top-1 accuracy, error, macro F1 (mean over the classes that occur); accuracy, precision, recall and F1 per class
    with their means (TEST.PER_CLASS_RESULT), the confusion matrix (TEST.COMPUTE_CMAT), and the accuracy per domain when
    domains are given. All in percent. All class scores are kept with TEST.SAVE_LOGITS."""

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        self.lab2cname = lab2cname or {}
        self.reset()

    def reset(self):
        self.y_true, self.y_pred, self.y_domain = [], [], []
        self.confidence, self.paths, self.logits = [], [], []
        self.confusion = torch.zeros(0, 0, dtype=torch.long)  # entry (i, j): images of class i that are taken for j
        self.batch_files = ()  # noted by the engine for loops that do not give `impath`

    def process(self, mo, gt, domain=None, impath=None):
        """Take a batch.

        Args:
            mo: logits (B, n_cls).
            gt: labels (B,).
            domain: domain indices (B,), when the accuracy per domain is wanted.
            impath: the B files, when `predictions` are wanted.
        Raises:
            NonFiniteError: a logit is NaN or infinite; the message names the images.
        """
        require_finite(mo, self.batch_files if impath is None else impath)
        predicted = mo.argmax(dim=1)
        self.y_pred.append(predicted.cpu())
        self.confidence.append(mo.float().softmax(dim=1).gather(1, predicted[:, None])[:, 0].cpu())
        self.y_true.append(gt.cpu())
        if domain is not None:
            self.y_domain.append(domain.cpu())
        if impath is not None:
            self.paths.extend(impath)
        if self.cfg.TEST.get("SAVE_LOGITS", False) and rank() == 0:
            self.logits.append(mo.detach().float().cpu())
        self.num_classes = mo.shape[1]

    def evaluate(self):
        """Print the block that begins with `=> result` and return the numbers."""
        y_true, y_pred = torch.cat(self.y_true), torch.cat(self.y_pred)
        size = max(self.num_classes, int(y_true.max()) + 1)
        self.confusion = torch.bincount(y_true * size + y_pred, minlength=size * size).view(size, size)
        hits = self.confusion.diagonal()
        total, correct = len(y_true), int(hits.sum())
        occurring = self.confusion.sum(1) > 0
        f1 = 2 * hits.double() / (self.confusion.sum(0) + self.confusion.sum(1)).clamp(min=1)

        results = OrderedDict()
        results["accuracy"] = 100.0 * correct / total
        results["error_rate"] = 100.0 - results["accuracy"]
        results["macro_f1"] = 100.0 * f1[occurring].mean().item()
        print(f"=> result\n* total: {total:,}\n* correct: {correct:,}\n* accuracy: {results['accuracy']:.2f}%\n"
              f"* error: {results['error_rate']:.2f}%\n* macro_f1: {results['macro_f1']:.2f}%")
        if self.y_domain:
            self._domains(results, y_true == y_pred)
        if self.cfg.TEST.PER_CLASS_RESULT:
            self._per_class(results)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._confusion_matrix()
        self.last_results = results
        return results

    def predictions(self):
        """(files, labels, predictions, confidences), a list each, of what was processed since `reset`; no files where
        none were given. A confidence is the softmax's probability of the prediction."""
        columns = (torch.cat(parts).tolist() if parts else []
                   for parts in (self.y_true, self.y_pred, self.confidence))
        return self.paths, *columns

    def scores(self):
        """All logits (N, n_cls) float32 on the CPU, in the order of `predictions`; None unless TEST.SAVE_LOGITS asks
        for them (in the first of a run's processes)."""
        return torch.cat(self.logits) if self.logits else None

    def breakdown(self):
        """Accuracy (%) by class and by domain, after `evaluate`:
        {"classes": {"name", "total", "accuracy": a list each, in label order}, "domains": {name: accuracy}}.
        A class without images has accuracy None; a dataset without target domains has no domains.

        With TEST.PER_CLASS_RESULT the classes also have "precision", "recall" and "f1" (%): precision is None for a
        class that is never predicted, recall and F1 for one without images. With TEST.COMPUTE_CMAT there is
        "confusion": entry (i, j) is the number of class i's images that are taken for class j."""
        totals = self.confusion.sum(1).tolist()
        correct = self.confusion.diagonal().tolist()
        classes = {
            "name": [str(self.lab2cname.get(label, label)) for label in range(len(totals))],
            "total": totals,
            "accuracy": [100.0 * right / total if total else None for right, total in zip(correct, totals)],
        }
        if self.cfg.TEST.PER_CLASS_RESULT:
            classes.update(self._precision_recall_f1())
        names = list(self.cfg.DATASET.TARGET_DOMAINS)
        domains = {name: self.last_results[f"accuracy_{name}"] for name in names
                   if f"accuracy_{name}" in self.last_results}
        if len(names) == 1:
            domains = {names[0]: self.last_results["accuracy"]}
        confusion = {"confusion": self.confusion.tolist()} if self.cfg.TEST.COMPUTE_CMAT else {}
        return {"classes": classes, "domains": domains, **confusion}

    def _precision_recall_f1(self):
        """{"precision", "recall", "f1": a list each, in label order}, in percent; None where it is not defined."""
        hits = self.confusion.diagonal().tolist()
        totals, predicted = self.confusion.sum(1).tolist(), self.confusion.sum(0).tolist()
        return {
            "precision": [100.0 * hit / count if count else None for hit, count in zip(hits, predicted)],
            "recall": [100.0 * hit / count if count else None for hit, count in zip(hits, totals)],
            "f1": [200.0 * hit / (total + count) if total else None
                   for hit, total, count in zip(hits, totals, predicted)],
        }

    def _confusion_matrix(self):
        """Store cmat.pt in the run folder: entry (i, j) is the share of class i's images taken for class j."""
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        shares = self.confusion / self.confusion.sum(1, keepdim=True).clamp(min=1)
        write_atomically(path, lambda file: torch.save(shares, file))
        print(f"Confusion matrix is saved to {path}")

    def _domains(self, results, hit):
        names = list(self.cfg.DATASET.TARGET_DOMAINS)
        domain = torch.cat(self.y_domain)
        print("=> domain-wise result")
        for index in domain.unique().tolist():
            name = names[index] if index < len(names) else str(index)
            results[f"accuracy_{name}"] = 100.0 * hit[domain == index].double().mean().item()
            print(f"* domain: {printable(name)}\ttotal: {int((domain == index).sum()):,}\t"
                  f"acc: {results[f'accuracy_{name}']:.2f}%")

    def _per_class(self, results):
        print("=> per-class result")
        rows, accuracies = [], []
        for label in range(len(self.confusion)):
            total = int(self.confusion[label].sum())
            if total == 0:
                continue
            correct = int(self.confusion[label, label])
            accuracies.append(100.0 * correct / total)
            name = printable(self.lab2cname.get(label, label))
            rows.append([label, name, f"{total:,}", f"{correct:,}", f"{accuracies[-1]:.2f}%"])
        print(tabulate(rows, headers=["label", "class", "total", "correct", "acc"]))
        results["perclass_accuracy"] = sum(accuracies) / len(accuracies)
        # Means over the classes that occur, as macro F1 is; one that is never predicted counts with precision 0.
        found = self._precision_recall_f1()
        occurring = [label for label, recall in enumerate(found["recall"]) if recall is not None]
        for name in ("precision", "recall"):
            results[f"macro_{name}"] = sum(found[name][label] or 0 for label in occurring) / len(occurring)
        print(f"* average: {results['perclass_accuracy']:.2f}%")
