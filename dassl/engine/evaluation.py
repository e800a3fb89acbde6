"""Evaluation: one pass over a loader, and the numbers that an evaluator makes of it."""
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from dassl.engine.loaders import divided, gathered_outputs
from dassl.metrics import deciding, require_finite
from dassl.utils import rank

Answer = Callable[[dict[str, Any]], tuple[Any, Any]]  # a batch -> (logits (B, n_cls), labels (B,))


class Evaluation:
    """Evaluates parts of the data; several processes of one run divide the images.

    Attributes:
        results: {part of the data: {name: number}} of the last pass over each.
    """

    def __init__(self) -> None:
        self.results: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def over(self, part: str, loader: Any, evaluator: Any, answer: Answer, domains: bool = False,
             reached: Callable[[int, int], None] = lambda done, batches: None, divide: bool = True) -> dict[str, Any]:
        """Evaluate on a part of the data.

        Args:
            part: its name (train, val, test), for the log and `results`.
            evaluator: a `dassl.evaluation.EvaluatorBase` that was reset. It is given logits and labels, and, where its
                `process` takes them, the images' files (`impath`) and domains.
            domains: whether domains are to be told apart.
            reached: is called with the number of batches done before each batch, and the number of all.
            divide: whether several processes divide the images; False: each computes all of them, in their order.
        Returns:
            {name: number}; the first decides.
        Raises:
            NonFiniteError: a logit, named with its image's file, or the first number is NaN or infinite.
        """
        known = {"impath", "domain"} if domains else {"impath"}
        wanted = known & set(inspect.signature(evaluator.process).parameters)  # a foreign one takes logits and labels
        print(f"Evaluate on the *{part}* set")
        with divided(loader, divide) as size_of:
            for number, batch in enumerate(tqdm(loader, desc=part, leave=False, disable=True if rank() else None)):
                reached(number, len(loader))
                output, label = answer(batch)
                more = {name: batch[name] for name in known if name in batch}
                for logits, labels, about in gathered_outputs(output, label, more, size_of(number)):
                    if torch.is_tensor(logits):  # a foreign evaluator may take other things
                        require_finite(logits, about.get("impath", ()))
                    evaluator.process(logits, labels, **{name: about[name] for name in wanted & set(about)})
        results = evaluator.evaluate()
        deciding(results)
        self.results[part] = results
        return results
