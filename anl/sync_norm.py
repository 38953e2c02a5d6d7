"""Batch normalisation over the batches of all processes, so that two of them train as one does.

Every detector here has batch norm. Left alone, each process would standardise its own share of a batch: another training,
and a worse one the smaller the shares. torch's SyncBatchNorm refuses tensors on a CPU; ours takes them. On a GPU torch's own
is used.
"""

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import distributed, nn

from anl.errors import UserError


class AllReduce(torch.autograd.Function):
    """The sum of a tensor over processes. Its gradient is the sum of theirs: each one's loss depends on every input."""

    @staticmethod
    def forward(context, tensor):
        total = tensor.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient):
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


class SyncBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose mean and variance are those of all processes' images: x (B, C, H, W), B may differ.

    Two sums are sent, the second of squares about the common mean, so that nothing cancels. Weights, running statistics and
    evaluation are nn.BatchNorm2d's, and so are the names in its state.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        sums = AllReduce.apply(torch.cat([values.sum((0, 2, 3)), values.new_tensor([x.numel() / x.shape[1]])]))
        mean, count = sums[:-1] / sums[-1], float(sums[-1].detach())
        centred = values - mean[:, None, None]
        variance = AllReduce.apply(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach(), count)
        found = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            found = found * self.weight[:, None, None] + self.bias[:, None, None]
        return found.to(x.dtype)

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
