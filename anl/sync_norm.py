"""Batch normalisation over the batches of all processes, so that two of them train as one does.

Every detector here has batch norm. Left alone, each process would standardise its own share of a batch: another training,
and a worse one the smaller the shares. torch's SyncBatchNorm refuses tensors on a CPU; ours takes them. On a GPU torch's own
is used.
"""

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import distributed, nn

from anl.errors import UserError


class Normalise(torch.autograd.Function):
    """(x standardised over all processes' images, scaled and shifted; mean, variance and count of all of them).

    x: (B, C, H, W), B may differ between processes; statistics are float32 at least. Each process sends its own mean, variance and
    count once, and two sums of gradients on the way back: the gradient is the sum of all processes', since each one's loss depends
    on every input. Written out, because of each step in between autograd would keep an image, where this keeps x alone.
    """

    @staticmethod
    def forward(context, x, weight, bias, eps):
        values = _wide(x)
        mean = values.mean((0, 2, 3))  # twice over x, in vector code: torch.var_mean takes ten times as long on a CPU
        variance = (values - mean[:, None, None]).square_().mean((0, 2, 3))
        own = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
        shares = own.new_empty(distributed.get_world_size() * len(own))
        distributed.all_gather_single(shares, own)
        means, variances, counts = shares.view(-1, len(own)).split([len(mean), len(mean), 1], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        context.save_for_backward(x, weight, mean, variance)
        context.eps, context.count = eps, float(count)
        found = nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        context.mark_non_differentiable(mean, variance, count)
        return found, mean, variance, count

    @staticmethod
    def backward(context, gradient, *_):
        x, weight, mean, variance = context.saved_tensors
        # as of fixed statistics: sums of the gradient times what was standardised, and of the gradient
        own = torch.stack(torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, context.eps, [False, True, True])[1:])
        total = own.clone()
        distributed.all_reduce(total)
        scale = (variance + context.eps).rsqrt()
        factor = scale if weight is None else scale * weight
        slope, shift = total / context.count
        centred = _wide(x) - mean[:, None, None]
        found = centred.mul_((-factor * scale * slope)[:, None, None]).sub_((factor * shift)[:, None, None])
        found.addcmul_(_wide(gradient), factor[:, None, None])
        return found.to(x.dtype), None if weight is None else own[0], None if weight is None else own[1], None


def _wide(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class SyncBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose mean and variance are those of all processes' images: x (B, C, H, W), B may differ.

    Weights, running statistics and evaluation are nn.BatchNorm2d's, and so are the names in its state.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        found, mean, variance, count = Normalise.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance, float(count))
        return found

    def _track(self, mean, variance, count):
        """Running statistics, as nn.BatchNorm2d keeps them: the variance is the unbiased one."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), share)


class SyncBatchNormAct(SyncBatchNorm):
    """timm's BatchNormAct2d: batch norm with dropout and activation behind it, in one module."""

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def synchronised(module, device):
    """`module` with every batch norm made one over all processes; its parameters stay the same objects.

    device: where it will be trained. Raises UserError on a batch norm of another kind, which it would have to leave alone.
    """
    if torch.device(device).type != "cpu":
        return convert_sync_batchnorm(module)
    return _converted(module, "")


def _converted(module, place):
    kinds = {nn.BatchNorm2d: SyncBatchNorm, BatchNormAct2d: SyncBatchNormAct}
    if type(module) in kinds:
        made = kinds[type(module)](module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        for name, tensor in module.named_parameters(recurse=False):
            setattr(made, name, tensor)
        for name, tensor in module.named_buffers(recurse=False):
            setattr(made, name, tensor)
        for name, child in module.named_children():
            made.add_module(name, child)
        return made.train(module.training)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        raise UserError(f"the detector's {place or 'module'} is a {type(module).__name__}, which several processes on CPUs "
                        "cannot share; choose another detector.backbone, or launch.processes: 1")
    for name, child in module.named_children():
        setattr(module, name, _converted(child, f"{place}.{name}".lstrip(".")))
    return module
