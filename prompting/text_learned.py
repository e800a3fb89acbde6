"""What a method learns in the text tower: vectors in place of tokens, or modules beside the blocks."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prompting.block_adapters import AT_INPUT, Adapters, draw
from prompting.errors import PromptingError


@dataclass
class Learned:
    """What is learned in or beside the blocks: the arguments of `TextTower.encode`."""

    deep: Mapping[int, Tensor]
    adapters: Adapters | None = None
    inserted: bool = False

    def require_one_kind(self) -> None:
        """Raise PromptingError for what does not go together."""
        if self.deep and draw(self.adapters):
            raise PromptingError("deep prompts stand among tokens that classes share, and beside an adapter that draws "
                                 "random numbers they share none; take either the prompts or the adapter")
        if AT_INPUT in (self.adapters or ()):
            raise PromptingError("the text tower has its input from the prompts; what is added there goes into them")
        shapes = [tuple(vectors.shape) for vectors in self.deep.values()]
        if self.inserted and shapes and (len(shapes[0]) != 2 or len(set(shapes)) > 1):
            raise PromptingError("tokens that are inserted must be the same for all classes, (n, W), and in each layer "
                                 f"as many, not {shapes}")

    def of_classes(self, rows: slice) -> Learned:
        """That of some of the classes."""
        own = {layer: vectors[rows] if vectors.dim() == 3 else vectors for layer, vectors in self.deep.items()}
        return Learned(own, self.adapters, self.inserted)

    @property
    def in_prefix(self) -> bool:
        """Whether all deep prompts stand in the prefix, and none is inserted."""
        return not self.inserted and all(vectors.dim() == 2 for vectors in self.deep.values())

    @property
    def inserted_tokens(self) -> int:
        """How many tokens come in that the prompts do not have."""
        return len(self.deep[min(self.deep)]) if self.inserted and self.deep else 0


def require_room(deep: Tensor, shared: int) -> None:
    """Raise PromptingError where deep prompts of all classes, (n, W), are more than the prefix has context vectors."""
    if deep.dim() == 2 and len(deep) >= shared:
        raise PromptingError(f"{len(deep)} deep prompts of all classes need as many context vectors in front of the "
                             f"class names; there are {shared - 1}")
