"""Do the tests notice a fault? Makes small faults in trainers/ and prompting/ and runs the tests that reach them.

    python tests/mutation.py                                    # all mutants, an hour or two
    python tests/mutation.py --sample 300 --seed 7 --jobs 2     # 300 of them
    python tests/mutation.py --paths trainers/coop.py           # of these files
    python tests/mutation.py --folder output/mutation           # keep the results there, go on where it was

Mutants: see tests/mutants.py. One is caught when a test fails, crashes or takes far longer than it did. Of the tests in
TESTS those are run that execute the changed statement, the quickest first, up to the first that fails. Which these are
is found out at the start: each test is run alone and its lines are noted.

Torch is imported once. A process in which pytest has collected the tests, and built the fixtures they share, is forked
for each mutant, and the fork gives the live function its changed code. What is run at import or by those fixtures
(constants, defaults, the loading of a CLIP) is changed in a fork in which nothing of this project is imported yet.
Processes that tests start get the changed code at import, too. Nothing is written into the source tree.
"""
import argparse
import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections import Counter, defaultdict
from importlib.machinery import SourceFileLoader
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import mutants  # noqa: E402
import yaml  # noqa: E402

PATHS = ("trainers", "prompting")
TESTS = ("test_parity.py", "test_prompting.py", "test_trainers.py", "test_trainers_methods.py",
         "test_trainers_deep.py", "test_training_options.py", "test_prompting_parts.py", "test_trainers_parts.py",
         "test_ranks_in_threads.py", "test_budget.py", "test_finite.py")
PRELOADED = ("torch", "torchvision.transforms", "clip", "hypothesis", "pytest")
SHARED = ("registries", "clip_file", "clip_model", "towers", "clips", "drawn_root", "tiny_config", "resnet_file")
PATIENCE = 20.0  # seconds that a test may take besides ten times what it took without a mutant, by default
MEMORY = 24 * 2**30  # bytes of address space of a fork
CHANGED, LINES = "MUTATION_CHANGED", "MUTATION_LINES"  # environment of the processes that tests start
PR_SET_PDEATHSIG = 1  # of Linux: a fork ends with the process that has made it
MISFITS = 77  # exit status of a fork whose function cannot take the changed code
OUTCOMES = ("caught", "timed out", "survived", "not reached")
EQUIVALENT = "equivalent"  # of a survivor that computes the same, by the list in
LIST = HERE / "mutants_equivalent.yaml"  # {file: {function: [{before, after, why}]}}


# ---- in the forks, and in the processes that tests start ----
def change_at_import(path, source, number):
    """Whoever imports the file from now on imports the mutant of its source."""
    get_code = SourceFileLoader.get_code

    def changed(self, name):
        if self.path and os.path.realpath(self.path) == path:
            return compile(mutants.mutated(source, number), self.path, "exec")
        return get_code(self, name)

    SourceFileLoader.get_code = changed


def live_functions(paths):
    """{(file, (qualified name, first line)): [functions]} of all there are in these files."""
    found = defaultdict(list)
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType):
            code = function.__code__
            if os.path.realpath(code.co_filename) in paths:
                found[os.path.realpath(code.co_filename), (code.co_qualname, code.co_firstlineno)].append(function)
    return found


def change_function(path, source, mutant, functions):
    """Give the live function the mutant's code. Raises ValueError where it does not fit."""
    code = _find(compile(mutants.mutated(source, mutant.number), path, "exec"), mutant.function)
    found = functions.get((path, mutant.function))
    if code is None or not found:
        raise ValueError(f"no function {mutant.function} in {path}")
    for function in found:
        function.__code__ = code


def _find(code, function):
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if (constant.co_qualname, constant.co_firstlineno) == function:
                return constant
            within = _find(constant, function)
            if within is not None:
                return within
    return None


class Lines:
    """Notes the lines of the files in `paths` that are executed, {path: {line}}."""

    def __init__(self, root, paths):
        self.root, self.seen, self.known = root, {path: set() for path in paths}, {}

    def start(self):
        threading.settrace(self._call)
        sys.settrace(self._call)

    def stop(self):
        sys.settrace(None)
        threading.settrace(None)

    def _call(self, frame, event, arg):
        name = frame.f_code.co_filename
        if name not in self.known:
            self.known[name] = self.seen.get(os.path.relpath(os.path.realpath(name), self.root))
        lines = self.known[name]
        if lines is None:
            return None
        lines.add(frame.f_lineno)

        def line(frame, event, arg):
            if event == "line":
                lines.add(frame.f_lineno)
            return line

        return line


def in_a_started_process():
    """What `sitecustomize` calls in the processes that tests start."""
    if os.environ.get(CHANGED):
        path, number = os.environ[CHANGED].rsplit(":", 1)
        change_at_import(path, Path(path).read_text(), int(number))
    if os.environ.get(LINES):
        import atexit

        folder, root, *paths = os.environ[LINES].split(os.pathsep)
        lines = Lines(root, paths)
        atexit.register(lambda: Path(folder, f"{os.getpid()}.json").write_text(
            json.dumps({path: sorted(seen) for path, seen in lines.seen.items()})))
        lines.start()


# ---- forks ----
class Fork:
    """A function in a process of its own, which is killed with all that it has started when it takes too long."""

    def __init__(self, function, folder, limit, quiet=True):
        self.folder, self.started, self.limit = Path(folder), time.monotonic(), limit
        self.folder.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()
            if quiet:
                null = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(null, stream)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
            os.chdir(self.folder)  # a mutant may write to a path that it has made
            status = function(self.folder) or 0
        finally:
            os._exit(status)

    def ended(self):
        """Its exit status, below 0 for a signal; None while it goes on."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            with contextlib.suppress(ProcessLookupError):  # what it has started and left behind
                os.killpg(self.pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - self.started > self.limit:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return -signal.SIGALRM
        return None

    def wait(self):
        while (status := self.ended()) is None:
            time.sleep(0.02)
        return status


def run_items(items, folder, limits, report):
    """Run collected tests one after another up to the first that fails; 1 if one does. Each has its limit in seconds,
    after which SIGALRM ends the process."""
    from _pytest.runner import runtestprotocol

    factory = items[0].config._tmp_path_factory
    factory._basetemp = folder / "pytest"
    factory._basetemp.mkdir()
    session = items[0].session
    for item, following in zip(items, [*items[1:], None]):
        report.write_text(item.nodeid)
        signal.setitimer(signal.ITIMER_REAL, limits[item.nodeid])
        reports = runtestprotocol(item, log=False, nextitem=following or session.items[0])
        signal.setitimer(signal.ITIMER_REAL, 0)
        if any(part.failed for part in reports):
            return 1
    return 0


# ---- which tests reach which lines ----
class Reach:
    """What the tests reach. `lines`: {test: {path: lines}}, of those that pass alone; `seconds`: {test: how long it
    took}; `early`: {path: lines that are run before the tests}; `failing`: tests that do not pass alone; `most`: how
    many tests a mutant gets, None for all."""

    most = None

    def __init__(self, lines, seconds, early, failing):
        self.lines, self.seconds, self.early, self.failing = lines, seconds, early, failing

    @classmethod
    def load(cls, paths):
        """From what is kept of several files of tests."""
        lines, seconds, early, failing = {}, {}, defaultdict(set), []
        for stored in (json.loads(path.read_text()) for path in paths):
            for test, files in stored["lines"].items():
                lines[test] = {path: set(seen) for path, seen in files.items()}
            seconds.update(stored["seconds"])
            failing += stored["failing"]
            for path, seen in stored["early"].items():
                early[path].update(seen)
        return cls(lines, seconds, early, failing)

    def at_import(self, mutant):
        """Whether a mutant must be there before anything is imported."""
        first, last = mutant.lines
        return mutant.function is None or not self.early.get(mutant.path, set()).isdisjoint(range(first, last + 1))

    def tests(self, mutant):
        """The tests to run, the quickest first: those that execute the changed statement. Of what is run at import
        only, those that execute anything else of the file, then all others, which may look at a constant."""
        first, last = mutant.lines
        early = self.early.get(mutant.path, set())
        wanted = set(range(first, last + 1))
        if mutant.function is None:
            wanted = {line for files in self.lines.values() for line in files.get(mutant.path, ())} - early
        chosen = [test for test, files in self.lines.items() if not wanted.isdisjoint(files.get(mutant.path, ()))]
        chosen.sort(key=lambda test: (self.seconds[test], test))
        if mutant.function is None or not chosen and not early.isdisjoint(wanted):
            chosen += sorted(set(self.lines) - set(chosen), key=lambda test: (self.seconds[test], test))
        if self.most is None or len(chosen) <= self.most:
            return chosen
        variants, seen = {}, Counter()  # one variant of each test comes before a second of any
        for test in chosen:
            variants[test] = seen[test.split("[")[0]]
            seen[test.split("[")[0]] += 1
        kept = set(sorted(chosen, key=variants.get)[:self.most])
        return [test for test in chosen if test in kept]


class Session:
    """A pytest plugin that takes the place of pytest's loop over the tests."""

    def __init__(self, run, work):
        self.run, self.work = run, work
        self.lines = {"import": Lines(str(run.root), run.paths)}  # what has run them -> lines

    def pytest_runtestloop(self, session):
        self.lines["import"].stop()
        for name in SHARED:
            self.lines[name] = Lines(str(self.run.root), self.run.paths)
            self.lines[name].start()
            self._build(session, name)
            self.lines[name].stop()
        paths = {str(self.run.root / path) for path in self.run.paths}
        self.functions = live_functions(paths)
        gc.collect()
        gc.freeze()  # the forks then share these pages
        self.work(session, self)
        return True

    @staticmethod
    def _build(session, name):
        """Set up the shared fixture `name` by setting up a test that uses it, next to one of another file."""
        from _pytest.tmpdir import tmppath_result_key

        item = next((item for item in session.items if name in item.fixturenames), None)
        if item is not None:
            others = [other for other in session.items if other is not item]
            item.stash[tmppath_result_key] = {}  # for the end of `tmp_path`; a test that is run has results there
            session._setupstate.setup(item)
            session._setupstate.teardown_exact(next((other for other in others if other.path != item.path), others[0]))
            item._initrequest()  # as pytest does after a test


class Run:
    """One run of the mutants of some files."""

    def __init__(self, args):
        self.args, self.root, self.folder = args, Path(args.root).resolve(), Path(args.folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.paths = sorted(str(path.relative_to(self.root)) for name in args.paths for path in self._files(name))
        self.sources = {path: (self.root / path).read_text() for path in self.paths}
        self.tests = [str(self.root / "tests" / name) for name in args.tests]
        self.reached = {tests: self.folder / f"reach-{self._digest(tests)}.json" for tests in self.tests}
        self.results, self.scratch = self.folder / "results.jsonl", self.folder / "scratch"
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(
            f"import os, sys\nif os.environ.get({CHANGED!r}) or os.environ.get({LINES!r}):\n"
            f"    sys.path.insert(0, {str(HERE)!r})\n    import mutation\n    sys.path.pop(0)\n"
            "    mutation.in_a_started_process()\n")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True

    def _files(self, name):
        path = self.root / name
        return path.rglob("*.py") if path.is_dir() else [path]

    def _digest(self, tests):
        """Of a file of tests and of all sources: what its tests reach follows from these."""
        found = hashlib.sha256(tests.encode())
        for text in (Path(tests).read_text(), *self.sources.values()):
            found.update(text.encode())
        return found.hexdigest()[:16]

    def quietly(self, folder):
        """Options of pytest: nothing but the tests, and nothing written into the tree."""
        return ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(self.root),
                "--basetemp", str(folder / "pytest")]

    def collected(self, work, tests=None):
        """Call `work(pytest's session, Session)` in a fork in which tests are collected and nothing has run."""
        def inside(folder):
            import pytest

            session = Session(self, work)
            session.lines["import"].start()
            return pytest.main([*(tests or self.tests), "-s", *self.quietly(folder)], plugins=[session])

        self.scratch.mkdir(exist_ok=True)
        status = Fork(inside, self.scratch / "session", limit=10**6, quiet=not self.args.verbose).wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        if status:
            raise SystemExit(f"the tests cannot be collected and run (status {status}); --verbose shows why")

    # ---- what the tests reach ----
    def reach(self):
        missing = [tests for tests in self.tests if not self.reached[tests].exists()]
        if missing:
            print(f"Running each test of {len(missing)} files alone", flush=True)
            self.collected(self._measure, missing)
        return Reach.load([self.reached[tests] for tests in self.tests])

    def _measure(self, session, ours):
        found = defaultdict(lambda: {"lines": {}, "seconds": {}, "failing": []})
        early = {path: set().union(*(noted.seen[path] for noted in ours.lines.values())) for path in self.paths}

        def alone(item):
            def inside(folder):
                os.environ[LINES] = os.pathsep.join([str(folder), str(self.root), *self.paths])
                noted = Lines(str(self.root), self.paths)
                noted.start()
                started = time.monotonic()
                status = run_items([item], folder, {item.nodeid: 900.0}, folder / "test")
                noted.stop()
                took = time.monotonic() - started
                (folder / "own.json").write_text(json.dumps({path: sorted(seen) for path, seen in noted.seen.items()}))
                (folder / "seconds").write_text(str(took))
                return status

            return inside

        def fork(entry):
            number, item = entry
            return Fork(alone(item), self.scratch / f"test{number}", limit=900.0)

        def done(entry, fork, status):
            item, seen = entry[1], defaultdict(set)
            of_file = found[str(item.path)]
            if status:
                of_file["failing"].append(item.nodeid)
                return
            of_file["seconds"][item.nodeid] = float((fork.folder / "seconds").read_text())
            parts = [ours.lines[name].seen for name in set(item.fixturenames) & set(SHARED) - {"registries"}]
            for part in (*parts, *(json.loads(path.read_text()) for path in fork.folder.glob("*.json"))):
                for path, lines in part.items():
                    seen[path].update(lines)
            of_file["lines"][item.nodeid] = {path: sorted(lines) for path, lines in seen.items() if lines}

        self._all(enumerate(session.items), fork, done)
        for tests, of_file in found.items():
            stored = {**of_file, "early": {path: sorted(lines) for path, lines in early.items()}}
            self.reached[tests].write_text(json.dumps(stored))

    # ---- the mutants ----
    def chosen(self):
        found = [mutant for path in self.paths for mutant in mutants.mutants(self.sources[path], path)]
        if self.args.sample and self.args.sample < len(found):
            found = sorted(random.Random(self.args.seed).sample(found, self.args.sample),
                           key=lambda mutant: (mutant.path, mutant.number))
        return found

    def key(self, mutant):
        return f"{mutant.path}:{mutant.number}:{hashlib.sha256(self.sources[mutant.path].encode()).hexdigest()[:12]}"

    def done(self):
        """{key: result} of what the folder has."""
        if not self.results.exists():
            return {}
        found = (json.loads(line) for line in self.results.read_text().splitlines() if line.endswith("}"))
        return {result["key"]: result for result in found}

    def make(self):
        """Run what is not there yet; returns the results of all chosen mutants."""
        reach, chosen = self.reach(), self.chosen()
        reach.most = self.args.most
        if reach.failing:
            print(f"{len(reach.failing)} tests do not pass alone and are left out: {', '.join(reach.failing)}")
        left = [mutant for mutant in chosen if self.key(mutant) not in self.done()]
        live = [mutant for mutant in left if reach.tests(mutant) and not reach.at_import(mutant)]
        if live:
            self.collected(lambda session, ours: self._live(session, ours, live, reach))
        done = self.done()
        left = [mutant for mutant in left if self.key(mutant) not in done]
        for mutant in left:
            if not reach.tests(mutant):
                self.note(mutant, "not reached", 0, 0.0)
        self._each([mutant for mutant in left if reach.tests(mutant)], reach, self._anew)
        done = self.done()
        return [done[self.key(mutant)] for mutant in chosen]

    def _live(self, session, ours, chosen, reach):
        items = {item.nodeid: item for item in session.items}

        def work(mutant, tests):
            def inside(folder):
                os.environ[CHANGED] = f"{self.root / mutant.path}:{mutant.number}"
                try:
                    change_function(str(self.root / mutant.path), self.sources[mutant.path], mutant, ours.functions)
                except ValueError:
                    return MISFITS
                return run_items([items[test] for test in tests], folder, self.limits(reach, tests), folder / "test")

            return inside

        self._each(chosen, reach, work)

    def _anew(self, mutant, tests):
        def inside(folder):
            import pytest

            class Watch:
                """One file says which test is on, another which has failed."""

                @staticmethod
                def pytest_runtest_logstart(nodeid):
                    (folder / "test").write_text(nodeid)

            os.environ[CHANGED] = f"{self.root / mutant.path}:{mutant.number}"
            change_at_import(str(self.root / mutant.path), self.sources[mutant.path], mutant.number)
            return pytest.main([*(str(self.root / test) for test in tests), "-x", *self.quietly(folder)],
                               plugins=[Watch()])

        return inside

    def limits(self, reach, tests):
        return {test: self.args.patience + 10 * reach.seconds[test] for test in tests}

    def _each(self, chosen, reach, work):
        """A fork for each mutant. Tests that have caught others of the same function go first."""
        catchers = defaultdict(set)

        def fork(mutant):
            known = catchers[mutant.path, mutant.function]
            tests = sorted(reach.tests(mutant), key=lambda test: test not in known)
            limit = 60 + self.args.patience + 3 * sum(reach.seconds[test] for test in tests)
            return Fork(work(mutant, tests), self.scratch / f"{mutant.path.replace('/', '_')}-{mutant.number}", limit)

        def done(mutant, fork, status):
            if status == MISFITS:
                return
            report = fork.folder / "test"
            test = (report.read_text() if report.exists() else "at import") if status else None
            if status:
                catchers[mutant.path, mutant.function].add(test)
            outcome = "survived" if status == 0 else "timed out" if status == -signal.SIGALRM else "caught"
            self.note(mutant, outcome, len(reach.tests(mutant)), time.monotonic() - fork.started, test)

        self._all(chosen, fork, done)

    def _all(self, entries, fork, done):
        """`fork(entry)` for each entry, `jobs` at a time, and `done(entry, fork, status)` when it has ended."""
        running, waiting = [], list(reversed(list(entries)))
        while waiting or running:
            while waiting and len(running) < self.args.jobs:
                entry = waiting.pop()
                running.append((entry, fork(entry)))
            for entry, forked in list(running):
                status = forked.ended()
                if status is not None:
                    running.remove((entry, forked))
                    done(entry, forked, status)
                    shutil.rmtree(forked.folder, ignore_errors=True)
            time.sleep(0.01)

    def note(self, mutant, outcome, tests, seconds, test=None):
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(json.dumps({
                "key": self.key(mutant), "path": mutant.path, "line": mutant.line, "outcome": outcome,
                "function": mutant.function[0] if mutant.function else "", "before": mutant.before,
                "after": mutant.after, "tests": tests, "by": test,
                "seconds": round(seconds, 2)}) + "\n")


# ---- the summary ----
def equivalent(path=LIST):
    """{(file, function, before, after): why} of the mutants that compute the same."""
    listed = yaml.safe_load(Path(path).read_text()) if Path(path).exists() else {}
    return {(file, function, entry["before"], entry["after"]): entry["why"]
            for file, functions in listed.items() for function, entries in functions.items() for entry in entries}


def name_equivalent(results, listed):
    """Those survivors that are `listed` get the outcome EQUIVALENT."""
    for result in results:
        missed = result["outcome"] in ("survived", "not reached")
        if missed and tuple(result[field] for field in ("path", "function", "before", "after")) in listed:
            result["outcome"] = EQUIVALENT
    return results


def table(results):
    """Rows of numbers for each file, and of all."""
    rows = []
    for path in sorted({result["path"] for result in results}):
        counts = Counter(result["outcome"] for result in results if result["path"] == path)
        rows.append([path, sum(counts.values()), *(counts[outcome] for outcome in (*OUTCOMES, EQUIVALENT))])
    counts = Counter(result["outcome"] for result in results)
    return [*rows, ["all", len(results), *(counts[outcome] for outcome in (*OUTCOMES, EQUIVALENT))]]


def share_caught(results):
    """Of the mutants that are not equivalent, 0 to 1."""
    real = [result for result in results if result["outcome"] != EQUIVALENT]
    return sum(result["outcome"] in ("caught", "timed out") for result in real) / max(1, len(real))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="tests/mutation.py", description=__doc__.splitlines()[0])
    parser.add_argument("--paths", nargs="+", default=PATHS, help="files or folders, from the root")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files of tests/")
    parser.add_argument("--sample", type=int, help="so many of the mutants, drawn; default all")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default 1)")
    parser.add_argument("--jobs", type=int, default=1, help="tests or mutants at a time (default 1)")
    parser.add_argument("--most", type=int, help="tests a mutant gets, the quickest and not two of a kind if there are "
                        "others; default all that reach it")
    parser.add_argument("--folder", help="keep the results here and go on from them; default a temporary folder")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds a test may run besides ten times "
                        f"what it took (default {PATIENCE:.0f})")
    parser.add_argument("--root", default=HERE.parent, help="the source tree; default this one")
    parser.add_argument("--preload", nargs="*", default=PRELOADED, help="modules to import once")
    parser.add_argument("--verbose", action="store_true", help="show what pytest says")
    args = parser.parse_args(argv)
    temporary = None if args.folder else tempfile.mkdtemp(prefix="mutation-")
    args.folder = args.folder or temporary
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    for module in args.preload:
        importlib.import_module(module)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        run = Run(args)
        results = name_equivalent(run.make(), equivalent())
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    for row in [["file", "mutants", *OUTCOMES, EQUIVALENT], *table(results)]:
        print(f"{row[0]:32}" + "".join(f"{str(cell):>13}" for cell in row[1:]))
    left_out = sum(mutants.words(source) for source in run.sources.values())
    print(f"{100 * share_caught(results):.1f} % of those that are not equivalent caught; {left_out} texts of messages "
          f"and docstrings left as they are; {time.monotonic() - started:.0f} s")
    for result in results:
        if result["outcome"] in ("survived", "not reached"):
            print(f"{result['path']}:{result['line']} {result['outcome']} ({result['tests']} tests)\n"
                  f"    - {result['before']}\n    + {result['after']}")
    return results


if __name__ == "__main__":
    main()
