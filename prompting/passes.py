"""How much went through the towers."""


class Passes:
    """Images and prompts that went forward through the towers while `counting`, which is off at first.

    Logical passes: a frozen and a prompted pass over one image are two; a pass is one however it is cut into chunks,
    divided between ranks or computed again on the way back. Frozen sentences (`TextTower.encode_texts`) are not
    counted: they are encoded once and kept.
    """

    def __init__(self):
        self.images = self.texts = 0
        self.counting = False

    def add(self, images=0, texts=0):
        if self.counting:
            self.images += images
            self.texts += texts
