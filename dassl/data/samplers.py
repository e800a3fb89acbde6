"""The order of images in an epoch, a function of (seed, epoch): call `set_epoch(e)`, then iterate."""
import random
from collections import defaultdict

from torch.utils.data import Sampler

from dassl.utils import InputError, Registry, derive_seed, share_of

SAMPLER_REGISTRY = Registry("SAMPLER")


class EpochSampler(Sampler):
    """A sampler whose order depends on nothing but `seed` and the epoch set last.

    Subclasses define `order(rng)`: a list of indices drawn with `rng`, a `random.Random` keyed by (seed, epoch).
    Every sampler's rng of one (seed, epoch) starts alike, so that methods whose samplers begin with the same
    shuffle see the same pictures.
    """

    def __init__(self, data_source, seed=0):
        self.data_source, self.seed, self.epoch = data_source, seed, 0

    @classmethod
    def from_config(cls, cfg, data_source, batch_size, n_domain, n_ins):
        return cls(data_source, seed=cfg.SEED)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def order(self, rng):
        raise NotImplementedError

    def canonical_order(self, rng):
        """The order that this one is a repair of, drawn with the same `rng`: which pictures the feature store encodes
        together. By default the order itself."""
        return self.order(rng)

    def canonical(self):
        """`canonical_order` of the epoch set last."""
        return self.canonical_order(self._rng())

    def _rng(self):
        return random.Random(derive_seed("order", self.seed, self.epoch))

    def __iter__(self):
        return iter(self.order(self._rng()))

    def __len__(self):
        return len(self.data_source)


@SAMPLER_REGISTRY.register()
class SequentialSampler(EpochSampler):
    def order(self, rng):
        return list(range(len(self.data_source)))


@SAMPLER_REGISTRY.register()
class RandomSampler(EpochSampler):
    def order(self, rng):
        return rng.sample(range(len(self.data_source)), len(self.data_source))


class _DomainSampler(EpochSampler):
    """Batches of `batch_size` images, the same number from each of their domains, until a domain runs dry."""

    def __init__(self, data_source, batch_size, n_domain, seed=0):
        super().__init__(data_source, seed)
        self.by_domain = defaultdict(list)
        for index, item in enumerate(data_source):
            self.by_domain[item.domain].append(index)
        domains = len(self.by_domain)
        self.n_domain = n_domain if n_domain > 0 else domains
        if self.n_domain > domains:
            raise InputError(f"DATALOADER.TRAIN_X.N_DOMAIN is {n_domain}, but the data has {domains} domains")
        if batch_size % self.n_domain:
            raise InputError(f"{type(self).__name__}: the batch size {batch_size} does not divide by "
                             f"{self.n_domain} domains")
        self.per_domain = batch_size // self.n_domain
        if (fewest := min(map(len, self.by_domain.values()))) < self.per_domain:
            raise InputError(f"{type(self).__name__}: a batch of {batch_size} has {self.per_domain} images of a "
                             f"domain, and one has {fewest}; make the batch (DATALOADER.TRAIN_X.BATCH_SIZE) smaller, "
                             f"{fewest * self.n_domain} at most, or take more shots")
        self.length = len(self.order(random.Random(0)))

    def pick(self, rng):
        """The domains of the next batch."""
        raise NotImplementedError

    def order(self, rng):
        left = {domain: rng.sample(items, len(items)) for domain, items in sorted(self.by_domain.items())}
        order = []
        while True:
            for domain in self.pick(rng):
                order.extend(left[domain][:self.per_domain])
                del left[domain][:self.per_domain]
            if any(len(items) < self.per_domain for items in left.values()):
                return order

    def __len__(self):
        return self.length


@SAMPLER_REGISTRY.register()
class RandomDomainSampler(_DomainSampler):
    """Each batch from `n_domain` domains drawn at random."""

    @classmethod
    def from_config(cls, cfg, data_source, batch_size, n_domain, n_ins):
        return cls(data_source, batch_size, n_domain, seed=cfg.SEED)

    def pick(self, rng):
        return rng.sample(sorted(self.by_domain), self.n_domain)

    def __len__(self):
        # How many batches fit before a domain runs dry differs between draws.
        return len(list(iter(self)))


@SAMPLER_REGISTRY.register()
class SeqDomainSampler(_DomainSampler):
    """Each batch from every domain, in their order."""

    def __init__(self, data_source, batch_size, seed=0):
        super().__init__(data_source, batch_size, 0, seed)

    @classmethod
    def from_config(cls, cfg, data_source, batch_size, n_domain, n_ins):
        return cls(data_source, batch_size, seed=cfg.SEED)

    def pick(self, rng):
        return sorted(self.by_domain)


@SAMPLER_REGISTRY.register()
class RandomClassSampler(EpochSampler):
    """Batches of batch_size // n_ins random classes with `n_ins` images each (repeated where a class has fewer)."""

    def __init__(self, data_source, batch_size, n_ins, seed=0):
        super().__init__(data_source, seed)
        if n_ins < 1 or batch_size % n_ins:
            raise InputError(f"RandomClassSampler: the batch size {batch_size} does not divide by N_INS = {n_ins}")
        self.n_ins, self.n_cls = n_ins, batch_size // n_ins
        self.by_class = defaultdict(list)
        for index, item in enumerate(data_source):
            self.by_class[item.label].append(index)
        if len(self.by_class) < self.n_cls:
            raise InputError(f"RandomClassSampler: {self.n_cls} classes per batch wanted, the data has "
                             f"{len(self.by_class)}; raise N_INS or make the batch smaller")
        self.length = len(self.order(random.Random(0)))

    @classmethod
    def from_config(cls, cfg, data_source, batch_size, n_domain, n_ins):
        return cls(data_source, batch_size, n_ins, seed=cfg.SEED)

    def order(self, rng):
        groups = {}
        for label, items in sorted(self.by_class.items()):
            items = rng.sample(items, len(items)) if len(items) >= self.n_ins else rng.choices(items, k=self.n_ins)
            groups[label] = [items[i:i + self.n_ins] for i in range(0, len(items) - self.n_ins + 1, self.n_ins)]
        order, alive = [], sorted(groups)
        while len(alive) >= self.n_cls:
            for label in rng.sample(alive, self.n_cls):
                order.extend(groups[label].pop())
            alive = [label for label in alive if groups[label]]
        return order

    def __len__(self):
        return len(list(iter(self)))


class EpochBatchSampler(Sampler):
    """Batches of keys `(index, epoch, position)`, from which SeededDataset derives a sample's augmentation.

    Args:
        sampler: an EpochSampler.
        drop_last: leave out a last batch that is not full; a set smaller than one batch keeps its short batch.
    """

    def __init__(self, sampler, batch_size, drop_last):
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}")
        self.sampler, self.batch_size = sampler, batch_size
        self.drop_last = drop_last
        self.epoch = self.first_batch = 0
        self.rank, self.world_size = 0, 1
        self.total = 0  # keys of the latest pass

    def set_epoch(self, epoch, first_batch=0):
        """Choose the epoch of the next pass, and with how many batches consumed it starts (for resuming)."""
        self.epoch, self.first_batch = epoch, first_batch
        self.sampler.set_epoch(epoch)

    def divide(self, rank, world_size):
        """From the next pass on yield only the share of `rank` of every batch; where that is empty, the first key,
        because a loader makes no empty batches."""
        self.rank, self.world_size = rank, world_size

    def __iter__(self):
        for whole in self.whole_batches():
            yield whole[share_of(len(whole), self.rank, self.world_size)] or whole[:1]

    def whole_batches(self):
        """The batches of the next pass, those of all ranks together."""
        keys = [(index, self.epoch, position) for position, index in enumerate(self.sampler)]
        self.total = len(keys)
        for batch in range(self.first_batch, self._batches(len(keys))):
            yield keys[batch * self.batch_size:(batch + 1) * self.batch_size]

    def size_of(self, batch):
        """The number of images of a batch of the latest pass, on all ranks together."""
        return min(self.batch_size, self.total - batch * self.batch_size)

    def _batches(self, size):
        if self.drop_last and size >= self.batch_size:
            return size // self.batch_size
        return -(-size // self.batch_size)

    def __len__(self):
        return self._batches(len(self.sampler))


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16, is_train=True):
    """The sampler registered as `sampler_type`. Raises InputError when there is none or it does not fit the data."""
    return SAMPLER_REGISTRY.get(sampler_type).from_config(cfg, data_source, batch_size, n_domain, n_ins)
