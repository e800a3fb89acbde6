"""Finding classes that register themselves: in a package, in a file of the user's, in an installed distribution."""
import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import traceback
import types

from dassl.utils.errors import InputError
from dassl.utils.moved import naming_what_moved


def import_package_modules(package):
    """Import every module of a package, sorted by name, so that what they register is known; not `_helpers`."""
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{module.name}")


def load_plugin(spec, registries=()):
    """Import the plugin `spec`: a path to a .py file, or the dotted name of a module.

    A file is imported as a module of a package made of its own folder, so that it may import its neighbours
    relatively; the folder's `__init__.py` is not run. What it registers may replace a known name in `registries`.

    Raises:
        InputError: no such file or module, it is no Python, or what it registers is refused.
    """
    with contextlib.ExitStack() as stack, _told(spec):
        for registry in registries:
            stack.enter_context(registry.replacing())
        stack.enter_context(naming_what_moved(f"--plugin {spec}"))
        if not (spec.endswith(".py") or os.path.isfile(spec)):
            if not all(part.isidentifier() for part in spec.split(".")):
                raise InputError(f"--plugin {spec}: neither a file nor a module that can be imported")
            try:
                return importlib.import_module(spec)
            except ModuleNotFoundError as error:
                if error.name is None or not (spec == error.name or spec.startswith(error.name + ".")):
                    raise
                raise InputError(f"--plugin {spec}: neither a file nor a module that can be imported") from None
        path = os.path.abspath(os.path.expanduser(spec))
        if not os.path.isfile(path):
            raise InputError(f"--plugin {spec}: no such file ({path})")
        folder, name = os.path.split(path)
        package = "plugin_" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        if package not in sys.modules:
            module = types.ModuleType(package)
            module.__path__ = [folder]
            sys.modules[package] = module
        full_name = f"{package}.{os.path.splitext(name)[0].replace('.', '_')}"
        if full_name in sys.modules:
            return sys.modules[full_name]
        loader = importlib.machinery.SourceFileLoader(full_name, path)
        found = importlib.util.spec_from_loader(full_name, loader)
        if found is None:
            raise InputError(f"--plugin {spec}: Python cannot import it")
        module = importlib.util.module_from_spec(found)
        sys.modules[full_name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[full_name]
            raise
        return module


@contextlib.contextmanager
def _told(spec):
    """Within it an error of what a plugin says, which its author can mend, becomes an InputError that names the plugin
    and the line."""
    try:
        yield
    except SyntaxError as error:
        raise InputError(f"--plugin {spec}: {error.filename}, line {error.lineno}: {error.msg}") from error
    except InputError as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_file(frame.filename, spec)]
        if not lines:
            raise
        raise InputError(f"--plugin {spec}, line {lines[-1]}: {error}") from error


def _is_file(path, spec):
    """Whether a module's file is that of the plugin `spec`."""
    if spec.endswith(".py") or os.path.isfile(spec):
        return os.path.abspath(path) == os.path.abspath(os.path.expanduser(spec))
    return path.removesuffix(".py").endswith(os.path.join(*spec.split(".")))


def load_entry_points(group="dassl.plugins", registries=()):
    """Import what installed distributions announce in the entry-point group `dassl.plugins`."""
    with contextlib.ExitStack() as stack:
        for registry in registries:
            stack.enter_context(registry.replacing())
        for entry in importlib.metadata.entry_points(group=group):
            entry.load()
