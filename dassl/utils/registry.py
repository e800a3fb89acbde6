"""Names -> classes, the one kind of global state there is."""
import contextlib
import difflib

from dassl.utils.errors import InputError


def nearest(name, known):
    """`" (did you mean 'X'?)"`, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Registry:
    """Classes by name.

        TRAINER_REGISTRY = Registry("TRAINER")

        @TRAINER_REGISTRY.register()
        class MyTrainer: ...

        TRAINER_REGISTRY.get("MyTrainer")
    """

    def __init__(self, name):
        self._name = name
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
            kind = self._name.lower()
            raise InputError(f"unknown {kind} '{name}'{nearest(str(name), self._objects)}; "
                             f"known: {', '.join(sorted(self._objects)) or 'none'}")
        return self._objects[name]

    def registered_names(self):
        return list(self._objects)

    def items(self):
        return self._objects.items()

    def __contains__(self, name):
        return name in self._objects
