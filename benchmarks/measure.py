"""Time, memory, operations and equality of two sides."""
import contextlib
import json
import statistics
import subprocess
import sys
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from prompting import PromptingError

TOLERANCE = 1e-4  # of losses and gradients in float32: norm of the difference over the norm


def timed(function, device):
    """-> (result, seconds on the clock, seconds of processor time)."""
    synchronize(device)
    clock, processor = time.perf_counter(), time.process_time()
    result = function()
    synchronize(device)
    return result, time.perf_counter() - clock, time.process_time() - processor


def synchronize(device):
    if device != "cpu":
        torch.cuda.synchronize(device)


def matrix_peak(device, dtype=torch.float32, size=2048, repeats=5):
    """Operations per second of a large matrix product, the best of a few."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(a, a)
    kind = 2 if device == "cpu" else 1
    return 2 * size ** 3 / min(timed(lambda: torch.mm(a, a), device)[kind] for _ in range(repeats))


class CountOperations(TorchDispatchMode):
    """Within it, `flop` adds up the operations of matrix products and attention, by torch's own formulas."""

    def __init__(self):
        super().__init__()
        aten = torch.ops.aten
        self.flop, self.formulas = 0, {
            **flop_registry,
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
        }

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        formula = self.formulas.get(function._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _attention_flop(query, key, value, *args, out_val=None, **kwargs):
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flop(grad_out, query, key, value, *args, out_val=None, **kwargs):
    return sdpa_backward_flop_count(grad_out.shape, query.shape, key.shape, value.shape)


def relative_difference(ours, plain):
    """The largest over the tensors of two lists: norm of the difference over the norm."""
    if len(ours) != len(plain):
        raise AssertionError(f"{len(ours)} tensors against {len(plain)}")
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(ours, plain))


def alternate(ours, plain, pairs, device):
    """Run the sides in turn, plain, ours, plain, ours, ...; the results of the first pair are compared.

    Args:
        ours, plain: functions -> lists of lists of tensors to compare ([losses, gradients]).
        pairs: how often.
    Returns:
        {"plain" and "ours": {"clock", "processor": [seconds], "flop"}, "differences": one a list compared}.
    """
    found, results = {"pairs": pairs}, {}
    for name in ("plain", "ours"):
        found[name] = {"clock": [], "processor": []}
    for pair in range(pairs):
        for name, function in (("plain", plain), ("ours", ours)):
            # Counting costs microseconds per operation; steps take seconds.
            counter = CountOperations()
            with counter if pair == 0 else contextlib.nullcontext():
                result, clock, processor = timed(function, device)
            if pair == 0:
                results[name], found[name]["flop"] = result, counter.flop
            found[name]["clock"].append(clock)
            found[name]["processor"].append(processor)
    found["differences"] = [relative_difference(a, b) for a, b in zip(results["ours"], results["plain"])]
    return found


def seconds(side, device):
    """What is compared: on a CPU, where other programs compute too, processor time of the one thread; else the clock.
    """
    return side["processor" if device == "cpu" else "clock"]


def ratios(found, device, kind=None):
    """plain / ours of each pair."""
    if kind is not None:
        return [a / b for a, b in zip(found["plain"][kind], found["ours"][kind])]
    return [a / b for a, b in zip(seconds(found["plain"], device), seconds(found["ours"], device))]


def median(values):
    return statistics.median(values)


def peak_above(function, device):
    """Bytes that `function` needs at most above what is allocated before it: resident memory of the process (Linux), or
    what torch allocates on a GPU."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts from here
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def resident(line):
    with open("/proc/self/status") as file:
        return next(int(entry.split()[1]) * 1024 for entry in file if entry.startswith(line))


def in_fresh_process(module, words):
    """The JSON that `python -m module words` prints as its last line."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PromptingError(f"{' '.join(command[1:])} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
