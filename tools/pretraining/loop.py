"""A training that goes on from its checkpoint."""

import os
import sys
import time

import numpy as np
import torch

from tools.pretraining.optimizers import learning_rate


def save_checkpoint(path, settings, step, seconds, parts):
    saved = {"settings": settings, "step": step, "seconds": seconds, "states": [x.state_dict() for x in parts]}
    torch.save(saved, path + ".tmp")
    os.replace(path + ".tmp", path)


def load_checkpoint(path, settings, parts, device):
    """Steps done and seconds spent, (0, 0) if there is no checkpoint. Exits if it was made with other settings."""
    if not os.path.exists(path):
        return 0, 0.0
    saved = torch.load(path, map_location=device, weights_only=True)
    if saved["settings"] != settings:
        print(f"{path} was made with other settings ({saved['settings']}); remove it or choose another --work-dir")
        sys.exit(2)
    for x, state in zip(parts, saved["states"]):
        x.load_state_dict(state)
    print(f"continuing {os.path.basename(path)} after step {saved['step']}", flush=True)
    return saved["step"], saved["seconds"]


def train(name, args, steps, settings, parts, optimizers, losses_of, after_step, evaluate):
    """Trains for `steps` steps, or what a checkpoint leaves of them.

    parts: what a checkpoint holds besides the optimizers; losses_of: step -> losses by name; after_step: called without
    gradients; evaluate: -> accuracies by name. Returns the seconds it took, those before a stop included.
    """
    path = os.path.join(args.work_dir, f"{name}.pt")
    done, before = load_checkpoint(path, settings, (*parts, *optimizers), args.device)
    start, begin = time.time() - before, done
    recent: dict[str, list[float]] = {}
    for step in range(done, steps):
        losses = losses_of(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, args.lr)
            optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            after_step()

        done = step + 1
        for key, value in losses.items():
            recent[key] = [*recent.get(key, [])[-49:], value.item()]
        if done % 50 == 0:
            means = "  ".join(f"{key} {np.mean(values):.3f}" for key, values in recent.items())
            speed = args.batch * (done - begin) / (time.time() - start - before)
            print(f"{name} step {done}/{steps}  {means}  {speed:.0f} pictures/s", flush=True)
        if done % args.save_every == 0 or done == steps:
            save_checkpoint(path, settings, done, time.time() - start, (*parts, *optimizers))
        if done % args.eval_every == 0 or done == steps:
            print("  " + "  ".join(f"{key} {value:.1f}" for key, value in evaluate().items()), flush=True)
    return time.time() - start
