"""The batches of a loader with frozen image features, which are taken from the store or computed for it."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dassl.data.loader import EpochLoader
from dassl.engine.loaders import end_workers
from dassl.metrics import require_finite
from dassl.utils import InputError, all_gather, rank, world_size
from training.batches import Batch
from training.store.entries import Space
from training.store.pictures import Pictures
from training.store.pieces import Key, Part, Table, chunks, plan_of_pictures, plan_of_views
from training.store.store import Store

AHEAD = 8  # pieces per loader worker that a process claims at a time: others compute the next ones meanwhile
SAY = 30.0  # seconds between two lines on how far the computing is
FLUSH = 60.0  # seconds of computing after which what there is of an entry is written


@dataclass
class Supply:
    """What the sources of a trainer share.

    encode: images (B, 3, H, W) -> frozen features (B, E), in one batch on the trainer's device.
    dtype: the type in which the tower gives features.
    store: None where nothing is kept on disk.
    pictures: knows the files' contents.
    meanwhile: called between two pieces; may raise.
    tell: is told of how many pictures, of how many that are missing, there are features now.
    begin: called before a pass; raises where the tower is no longer that of the features.
    width: E, of the tower; features of another one in the store are not used.
    taken, computed: pictures whose features came from the store, and that were encoded.
    """

    encode: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    store: Store | None
    pictures: Pictures
    meanwhile: Callable[[], None]
    tell: Callable[[int, int], None]
    begin: Callable[[], None]
    width: int
    taken: int = 0
    computed: int = 0


@dataclass
class Request:
    """What a loader's batches are to have.

    made: views that the loader makes of each picture; where there are several, "img" is a list of them.
    views: the numbers of those that are encoded.
    beside: whether "frozen" stands beside the pictures, instead of features in their place.
    drawn: whether the transform draws; space: what the features share; about: the name of the data.
    """

    made: int
    views: Sequence[int]
    beside: bool
    drawn: bool
    space: Space
    about: str


class Source:
    """Gives the batches of one loader (`EpochLoader.source`)."""

    def __init__(self, loader: EpochLoader, request: Request, supply: Supply) -> None:
        self.request, self.supply = request, supply
        self.data: Any = loader.dataset  # a SeededDataset
        self.order: Any = loader.batch_sampler  # an EpochBatchSampler
        # Reads pieces; its workers are kept from epoch to epoch, where those of the loader are.
        self.pieces = Pieces()
        self._reader = EpochLoader(loader.dataset, batch_sampler=self.pieces, num_workers=loader.num_workers,
                                   persistent_workers=loader.persistent_workers, pin_memory=loader.pin_memory,
                                   generator=torch.Generator().manual_seed(0))
        self._held: Table | None = None  # of pictures that are not drawn: the same in each pass

    def batches(self, loader: EpochLoader) -> Iterator[Batch]:
        """The batches of a pass. Before the first, what the store does not have of all of them is computed."""
        keys = [key for batch in self.order.whole_batches() for key in batch]
        if not keys:
            return
        self.supply.begin()
        table, batches = self._table(keys), list(self.order)
        if self.request.beside:
            for batch, keys in zip(loader.read(), batches):
                yield {**batch, "frozen": table.of(keys)[:, 0].to(self.supply.dtype)}
            return
        for keys in batches:
            yield self._batch(keys, table.of(keys).to(self.supply.dtype))

    def _batch(self, keys: list[Key], rows: Tensor) -> Batch:
        """A batch of the pictures of some keys, as the loader makes it, with features (B, views, E) in their place."""
        items = [self.data.data_source[index] for index, _, _ in keys]
        batch: Batch = {"label": torch.tensor([item.label for item in items]),
                        "domain": torch.tensor([item.domain for item in items]),
                        "impath": [item.impath for item in items],
                        "index": torch.tensor([index for index, _, _ in keys])}
        views = list(rows.unbind(dim=1))
        batch["img"] = views if self.request.made > 1 else views[0]
        return batch

    # ---- features ----
    def _table(self, keys: list[Key]) -> Table:
        """The features of a pass over the pictures of some keys."""
        if self._held is not None and all(key in self._held for key in keys):
            return self._held
        request, data = self.request, self.data
        views, digests = len(request.views), self.supply.pictures.digests
        if request.drawn:
            plan = plan_of_views(data.data_source, self.order.sampler, keys, data.seed, request.space, views, digests,
                                 request.about)
        else:
            plan = plan_of_pictures(data.data_source, keys, request.space, views, digests, request.about)
        self._fill(plan.parts)
        table = plan.table()
        self._held = None if request.drawn else table
        return table

    def _fill(self, parts: list[Part]) -> None:
        """Read all that is wanted from the store, and compute the rest."""
        for part in parts:
            self._read(part)
        wanted, before = sum(part.pictures(part.wanted) for part in parts), self.supply.computed
        missing = [part for part in parts if part.missing]
        if world_size() > 1:
            self.supply.taken += wanted - self._fill_together(parts)
            return
        if missing:
            with self._progress(sum(part.pictures(part.missing) for part in missing)) as done:
                self._fill_alone(missing, done)
        self.supply.taken += wanted - (self.supply.computed - before)

    def _read(self, part: Part) -> None:
        if self.supply.store is not None:
            found = self.supply.store.read(part.entry)
            part.pieces.update({piece: rows for piece, rows in found.items() if rows.shape[2] == self.supply.width})

    def _fill_alone(self, left: list[Part], done: Callable[[int], None]) -> None:
        """Compute what is missing, and keep it. What another process is computing is left for later, and then waited
        for."""
        store = self.supply.store
        while left:
            busy: list[Part] = []
            for chunk in chunks(left, AHEAD * max(1, self._reader.num_workers)):
                with contextlib.ExitStack() as claims:
                    own: list[Part] = []
                    for part in chunk:
                        free = store is None or claims.enter_context(store.claim(part.entry))
                        (own if free else busy).append(part)
                    for part in own:  # another process may have computed it since
                        self._read(part)
                    self._compute(own, done)
            if store is not None and len(busy) == len(left):
                store.wait(busy[0].entry, self.supply.meanwhile)
            for part in busy:
                before = part.pictures(part.missing)
                self._read(part)
                done(before - part.pictures(part.missing))
            left = [part for part in busy if part.missing]

    def _compute(self, parts: list[Part], done: Callable[[int], None]) -> None:
        """Compute what is missing of some parts, and keep it, also where the run ends meanwhile."""
        work = [(part, piece) for part in parts for piece in part.missing]
        unwritten: list[tuple[Part, int]] = []
        written = time.monotonic()
        try:
            for (part, piece), rows in zip(work, self._encoded([part.keys_of(piece) for part, piece in work])):
                part.pieces[piece] = rows
                unwritten.append((part, piece))
                done(len(rows))
                if not part.missing or time.monotonic() - written > FLUSH:
                    self._write(unwritten)
                    written = time.monotonic()
                self.supply.meanwhile()
        finally:
            self._write(unwritten)

    def _write(self, unwritten: list[tuple[Part, int]]) -> None:
        """Keep pieces, and empty the list of them."""
        by_part: dict[int, tuple[Part, dict[int, Tensor]]] = {}
        for part, piece in unwritten:
            by_part.setdefault(id(part), (part, {}))[1][piece] = part.pieces[piece]
        for part, pieces in by_part.values():
            if self.supply.store is not None:
                self.supply.store.write(part.entry, {piece: rows for piece, rows in pieces.items()
                                                     if self._is_of(part, piece)})
        unwritten.clear()

    def _is_of(self, part: Part, piece: int) -> bool:
        """Whether the pictures of a piece still are those that the entry is known by: it may be some time between a
        look at a file and its decoding."""
        paths = [self.data.data_source[index].impath for index, _, _ in part.keys_of(piece)]
        try:
            return self.supply.pictures.digests(paths) == list(part.entry.pictures[part.entry.rows(piece)])
        except InputError:  # one is gone
            return False

    def _fill_together(self, parts: list[Part]) -> int:
        """Compute what any of a run's processes lacks: each computes whole pieces, in turn, and rank 0 keeps them.
        Returns how many pictures that were."""
        lacking = [(number, piece) for number, part in enumerate(parts) for piece in part.missing]
        work = sorted(set().union(*all_gather(set(lacking))))
        own = work[rank()::world_size()]
        encoded = self._encoded([parts[number].keys_of(piece) for number, piece in own])
        computed: dict[tuple[int, int], Tensor] = {}
        for turn in range(-(-len(work) // world_size())):  # all of them ask for signals equally often
            computed.update({place: next(encoded) for place in own[turn:turn + 1]})
            self.supply.meanwhile()
        found = {place: rows for share in all_gather(computed) for place, rows in share.items()} if work else {}
        for (number, piece), rows in found.items():
            parts[number].pieces[piece] = rows
        if rank() == 0:
            self._write([(parts[number], piece) for number, piece in found])
        return sum(map(len, found.values()))

    def _encoded(self, pieces: list[list[Key]]) -> Iterator[Tensor]:
        """Features (rows, views, E) float32 on the CPU of pieces, each of which goes through the tower as one batch."""
        if not pieces:
            return
        self.pieces.pieces = pieces
        for batch in self._reader:
            images = batch["img"] if self.request.made > 1 else [batch["img"]]
            rows = torch.stack([self.supply.encode(images[view]).float().cpu() for view in self.request.views], dim=1)
            require_finite(rows.flatten(1), batch["impath"], "features")
            self.supply.computed += len(rows)
            yield rows

    @contextlib.contextmanager
    def _progress(self, pictures: int) -> Iterator[Callable[[int], None]]:
        bar, so_far, said = tqdm(total=pictures, desc="features", unit="picture", leave=False,
                                 disable=True if rank() else None), 0, time.monotonic()

        def done(more: int) -> None:
            nonlocal so_far, said
            so_far += more
            bar.update(more)
            self.supply.tell(so_far, pictures)
            if so_far < pictures and time.monotonic() - said > SAY:
                print(f"Features: {so_far:,} of {pictures:,} pictures done")
                said = time.monotonic()

        with bar:
            self.supply.tell(0, pictures)
            yield done

    def end_workers(self) -> None:
        """End the workers that read pieces."""
        end_workers(self._reader)


@dataclass
class Pieces:
    """Batches of a loader: what `pieces` is set to."""

    pieces: list[list[Key]] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)
