"""What the pretraining of the tiny CLIP is made of."""
