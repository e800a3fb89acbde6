"""How much went through the towers."""


class Passes:
    """Images and prompts that went forward through the towers while `counting`, which is off at first.

    Logical passes are counted: a frozen and a prompted pass over one image are two passes. A pass counts once, also
    where it is cut into chunks, divided between ranks, or computed again in the backward pass. Frozen sentences
    (`TextTower.encode_texts`) are not counted: they are encoded once and kept. Those of a tower that is trained are.
    """

    def __init__(self) -> None:
        self.images = self.texts = 0
        self.counting = False

    def add(self, images: int = 0, texts: int = 0) -> None:
        if self.counting:
            self.images += images
            self.texts += texts
