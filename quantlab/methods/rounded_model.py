"""The float model and the rounded one in one module, which is called with its own weights or with others in their place.

No weight is copied. Letters: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from quantlab.errors import CheckpointError

PASS_TOKENS = 512
"""Tokens that the models see at a time: logits take memory."""


Whole = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class RoundedModel:
    """The float model and the rounded one in one module, on the module's device.

    Args:
        rounded: tensors that take the place of the module's own, by name.
        whole: makes parameters of the tensors that are given: those of stacked parameters are given matrix by matrix.
    """

    def __init__(self, module: nn.Module, rounded: Mapping[str, Tensor], whole: Whole = dict) -> None:
        self.module, self._whole = module, whole
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        self._names: dict[int, list[str]] = {}
        for name, parameter in self.parameters.items():
            self._names.setdefault(id(parameter), []).append(name)
        self._rounded = self._placed(rounded)

    def _placed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values on the device and in the dtype of their parameters, under every name that a parameter has."""
        like = self.parameters
        return {
            alias: value.to(like[name].device, like[name].dtype)
            for name, value in self._whole(values).items()
            for alias in self._names[id(like[name])]
        }

    def on_device(self, tensor: Tensor) -> Tensor:
        """Return ids, or any other tensor, on the module's device."""
        return tensor.to(next(iter(self.parameters.values())).device)

    @torch.no_grad()
    def float_prediction(self, ids_BT: Tensor) -> Tensor:
        """Return the float model's log-probabilities, float32 [B, T, V]."""
        prediction: Tensor = self.module(self.on_device(ids_BT)).float().log_softmax(-1)
        return prediction

    def kl(self, p_BTV: Tensor, values: Mapping[str, Tensor], ids_BT: Tensor) -> Tensor:
        """Return KL(float ‖ rounded) of every prediction in nats, [B, T], with `values` in place of unquantized tensors."""
        logits = self._rounded_logits(values, ids_BT)
        return F.kl_div(logits.float().log_softmax(-1), p_BTV, reduction="none", log_target=True).sum(-1)

    def _rounded_logits(self, values: Mapping[str, Tensor], ids_BT: Tensor) -> Tensor:
        placed = self._rounded | self._placed(values)
        logits: Tensor = functional_call(self.module, placed, (self.on_device(ids_BT),), tie_weights=False)
        return logits

    @torch.no_grad()
    def mean_kl(
        self, values: Mapping[str, Tensor], ids_NT: Tensor, progress: Callable[[int, int], None] | None = None
    ) -> float:
        """Return the mean KL(float ‖ rounded) over all predictions, nats a token, with `values` for unquantized tensors.

        Args:
            ids_NT: sequences, int64 [N, T].
            progress: called with (sequences done, N).
        Raises:
            CheckpointError: it is exactly 0 although weights differ, so the model does not use them.
        """
        total, done = 0.0, 0
        for part in passes_of(ids_NT):
            p, q = self.module(self.on_device(part)), self._rounded_logits(values, part)
            p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)  # float32 ends at a KL of about 1e-7
            total += float((p.exp() * (p - q)).sum())
            done += len(part)
            if progress:
                progress(done, len(ids_NT))
        if total == 0 and self._differs(values):
            raise CheckpointError(
                "KL is exactly 0 with rounded weights in place of the model's own: the model is compared with itself",
                hint="its forward must read the parameters of the module, not a closure's or copies",
            )
        return total / ids_NT.numel()

    def _differs(self, values: Mapping[str, Tensor]) -> bool:
        """Return whether any weight that was put in place is another than the model's own."""
        used = self._rounded | self._placed(values)
        return any(not torch.equal(value, self.parameters[name]) for name, value in used.items())


def passes_of(ids_NT: Tensor) -> tuple[Tensor, ...]:
    """Split the sequences into parts of about PASS_TOKENS tokens; none of no sequences."""
    return torch.split(ids_NT, max(1, PASS_TOKENS // ids_NT.shape[1])) if len(ids_NT) else ()
