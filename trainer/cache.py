"""What a GPT keeps of the tokens it has read, so that sampling reads each token once."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class KVCache:
    """Keys and values of the tokens read so far; `GPT.forward` appends to it in place (use torch.no_grad)."""

    keys: Tensor
    """[passes, B, K, length, E], rotated."""
    values: Tensor
    """[passes, B, K, length, E]."""
    ids: Tensor
    """[B, length]: what was read."""
    position: int = 0
    """Tokens held, which is also the position of the next one."""

    @property
    def length(self) -> int:
        """Tokens it has room for."""
        return self.keys.shape[3]

    def append_(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one pass and return all that it holds; `position` moves after the last one."""
        end = self.position + k_BKTE.shape[2]
        self.keys[layer, :, :, self.position : end] = k_BKTE
        self.values[layer, :, :, self.position : end] = v_BKTE
        return self.keys[layer, :, :, :end].to(k_BKTE.dtype), self.values[layer, :, :, :end].to(v_BKTE.dtype)

    def with_previous(self, ids_BT: Tensor) -> Tensor:
        """`ids_BT` and the two ids before them (a smear reads the previous embedding, whose bigram reads the one before), or
        as many as there are."""
        new_end = self.position + ids_BT.shape[1]
        self.ids[:, self.position : new_end] = ids_BT
        return self.ids[:, max(0, self.position - 2) : new_end]
