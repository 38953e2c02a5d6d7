"""One resumable optimisation loop for the models the benchmark is made with (generators and prior).

The batch of step k is a pure function of the seed and k, so a run that was killed and resumed from its checkpoint goes
through the same batches as one that was not.
"""

import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from anl.errors import UserError
from anl.files import identity, whole_file

CHECKPOINT_SECONDS = 45


class Checkpoint:
    """A file of tensors and plain values that survives a killed process; kept outside DVC's outputs.

    `folder` is usually `.cache/anl`; the file's name carries the hash of `parameters`, so that a checkpoint of other
    parameters is never picked up.
    """

    def __init__(self, folder, name, parameters):
        self.path = Path(folder) / f"{name}-{identity(parameters)}.pt"

    def load(self):
        """The saved state, or None. A truncated file counts as none: it is removed, with a line that says so."""
        if not self.path.exists():
            return None
        try:
            # weights_only: tensors and plain containers, no code is run
            return torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as problem:
            print(f"checkpoint {self.path} cannot be read ({type(problem).__name__}); starting afresh", file=sys.stderr)
            self.path.unlink()
            return None

    def save(self, state):
        with whole_file(self.path) as temporary:
            torch.save(state, temporary)

    def remove(self):
        self.path.unlink(missing_ok=True)


def fit(models, loss_at, *, steps, learning_rate, checkpoint, name, ema=0.0,
        checkpoint_seconds=CHECKPOINT_SECONDS):
    """Minimise `loss_at(step)` with AdamW, warm-up and cosine decay; returns the list of (step, loss) every 1/100.

    models: dict of name -> nn.Module, all trained together.
    loss_at: callable step -> scalar tensor; must depend on `step` only.
    ema: decay of the exponential average that replaces the weights at the end (0: none).
    Raises UserError on a loss that is not finite, naming the step.
    """
    parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: learning_rate_factor(k, steps))
    averages = [p.detach().clone() for p in parameters] if ema else []
    curve, start = [], 0
    if state := checkpoint.load():
        for key, model in models.items():
            model.load_state_dict(state["models"][key])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        averages = state["averages"]
        curve, start = [tuple(point) for point in state["curve"]], state["step"]
    saved_at = time.monotonic()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=10, disable=None,
               file=sys.stderr)
    for step in bar:
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise UserError(f"{name}: the loss is {loss.item()} at step {step + 1}; lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        for average, parameter in zip(averages, parameters):
            average.lerp_(parameter.detach(), 1 - min(ema, (step + 1) / (step + 10)))
        if step % max(1, steps // 100) == 0 or step == steps - 1:
            curve.append((step + 1, float(loss.detach())))
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if time.monotonic() - saved_at > checkpoint_seconds:
            checkpoint.save({"models": {key: model.state_dict() for key, model in models.items()},
                             "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
                             "averages": averages, "curve": curve, "step": step + 1})
            saved_at = time.monotonic()
    with torch.no_grad():
        for average, parameter in zip(averages, parameters):
            parameter.copy_(average)
    return curve


def learning_rate_factor(step, steps, warmup=50):
    """Linear warm-up over `warmup` steps (a tenth of a short run), then a cosine to 2 % of the peak."""
    warmup = max(1, min(warmup, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    progress = torch.tensor((step - warmup) / max(1, steps - warmup))
    return float(0.02 + 0.98 * 0.5 * (1 + torch.cos(torch.pi * progress.clamp(max=1))))
