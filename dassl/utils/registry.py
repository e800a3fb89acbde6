"""Names -> classes, the one kind of global state there is."""
import contextlib
import difflib
import os

from dassl.utils.errors import InputError


def nearest(name, known):
    """`" (did you mean 'X'?)"`, or nothing when no known name is close. Names that are equally close are all told."""
    close = similar(name, known)
    return f" (did you mean {' or '.join(map(quoted, close))}?)" if close else ""


def quoted(name):
    return f"'{name}'"


def similar(name, known, most=3, least=0.5):
    """The names of `known` that `name` may stand for, at most `most`; [] where none is close.

    The same letters and digits come first (`Coop`, `vit-b16`), then names of which it is one slip of the keyboard, then
    the one most alike, if it is alike by `least` (difflib's ratio).
    """
    name, known = str(name), list(dict.fromkeys(map(str, known)))
    for alike in (_same_but_for_case, _same_letters, is_slip):
        if close := [other for other in known if alike(name.casefold(), other.casefold())]:
            return close[:most]
    folded = {other.casefold(): other for other in reversed(known)}
    return [folded[other] for other in difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=least)]


def _same_but_for_case(one, other):
    return one == other


def _same_letters(one, other):
    return bool(_letters(one)) and _letters(one) == _letters(other)


def _letters(word):
    return "".join(filter(str.isalnum, word))


def is_slip(one, other):
    """Whether two words differ by one letter that is missing, added or another one, or by two that changed places.
    Words without a letter in common do not."""
    start = len(os.path.commonprefix([one, other]))
    one, other = one[start:], other[start:]
    end = len(os.path.commonprefix([one[::-1], other[::-1]]))
    one, other = one[:len(one) - end], other[:len(other) - end]
    return (max(len(one), len(other)) <= 1 and start + end > 0) or (len(one) == 2 and one == other[::-1])


class Registry:
    """Classes by name.

        TRAINER_REGISTRY = Registry("TRAINER")

        @TRAINER_REGISTRY.register()
        class MyTrainer: ...

        TRAINER_REGISTRY.get("MyTrainer")
    """

    def __init__(self, name, hint=""):
        """hint: what else to do about a name that is like none, for the message."""
        self._name, self._hint = name, hint
        self._objects = {}
        self.replaced = {}  # name -> the class that a plugin of the same name stands in for
        self._replacing = False

    def register(self, obj=None, force=False):
        """Decorator (`@X.register()`) or plain call (`X.register(cls)`). Registering a name twice raises KeyError
        unless `force` is set or a plugin is being loaded (`with registry.replacing()`)."""
        if obj is None:
            return lambda cls: self.register(cls, force)
        name = self.name_of(obj)
        if name in self._objects and not force:
            if not self._replacing:
                raise KeyError(f'an object named "{name}" is already registered in the {self._name} registry')
            if self._objects[name].__module__ != obj.__module__:
                print(f"Note: {name} of {obj.__module__} replaces {self._objects[name].__module__}.{name}")
                self.replaced.setdefault(name, self._objects[name])
        self._objects[name] = obj
        return obj

    def name_of(self, obj):
        """The name that a class is registered by: its own."""
        return obj.__name__

    @contextlib.contextmanager
    def replacing(self):
        """While it lasts, a new class may take a registered name, with a notice."""
        before, self._replacing = self._replacing, True
        try:
            yield self
        finally:
            self._replacing = before

    def get(self, name):
        """The class called `name`. Raises InputError that lists the known names."""
        if name not in self._objects:
            kind, meant = self._name.lower(), nearest(str(name), self._objects)
            hint = f"; {self._hint}" if self._hint and not meant else ""
            raise InputError(f"unknown {kind} '{name}'{meant}{hint}; "
                             f"known: {', '.join(sorted(self._objects)) or 'none'}")
        return self._objects[name]

    def registered_names(self):
        return list(self._objects)

    def items(self):
        return self._objects.items()

    def __contains__(self, name):
        return name in self._objects
