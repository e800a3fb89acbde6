"""Meta-episodes as a sampler, for methods that learn on one part of a batch and measure the loss on the rest."""
from typing import Any

from dassl.data.samplers import SAMPLER_REGISTRY, RandomSampler
from dassl.utils import InputError, check_availability
from prompting.episodes import splittable_order


def split_of(cfg: Any) -> str:
    """What the batches of a method are split by, class or domain: `TRAINER.<method>.SPLIT`, where auto means domain if
    there are several source domains and class if not.

    Raises:
        InputError: unknown split, or a domain split of fewer than two domains.
    """
    name = cfg.TRAINER.NAME
    split, domains = cfg.TRAINER[name.upper()].SPLIT, cfg.DATASET.SOURCE_DOMAINS
    check_availability(split, ("class", "domain", "auto"), f"TRAINER.{name.upper()}.SPLIT")
    if split == "auto":
        return "domain" if len(domains) > 1 else "class"
    if split == "domain" and len(domains) < 2:
        raise InputError(f"TRAINER.{name.upper()}.SPLIT is domain, which needs at least two source domains; "
                         f"{len(domains)} given by DATASET.SOURCE_DOMAINS (use SPLIT class, or --source-domains)")
    return split


@SAMPLER_REGISTRY.register()
class MetaEpisodeSampler(RandomSampler):
    """RandomSampler's order, repaired so that every batch can be split into meta-episodes: it has images of at least
    two domains (domain split) or of at least two classes (class split). Each image comes once per epoch, except for
    those that are left after the last full batch.

    Raises:
        PromptingError: the data has no such order (on construction).
    """

    def __init__(self, data_source, batch_size, split, seed=0):
        super().__init__(data_source, seed)
        self.batch_size = batch_size
        self.what = "domains" if split == "domain" else "classes"
        self.groups = [item.domain if split == "domain" else item.label for item in data_source]
        list(iter(self))

    @classmethod
    def from_config(cls, cfg, data_source, batch_size, n_domain, n_ins):
        split = split_of(cfg)
        if split == "class" and len({item.label for item in data_source}) < 4:
            return RandomSampler(data_source, seed=cfg.SEED)  # no episode can be made; MetaPrompt says so
        return cls(data_source, batch_size, split, seed=cfg.SEED)

    def canonical_order(self, rng):
        return super().order(rng)

    def order(self, rng):
        return splittable_order(super().order(rng), self.groups, self.batch_size, rng, self.what)
