"""Which kernels a model computes with: those that go with its attention back end.

Called by the engine when it loads a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dopd.attention import choose
from dopd.errors import ConfigError
from dopd.layers.kernels import Kernels, TorchKernels
from dopd.layers.rope import Rope
from dopd.models.frequencies import inverse_frequencies
from dopd.weights.config import ModelConfig

# Largest difference from torch's own, as a share of 1 + the value: a few times the distance to the
# next number in bfloat16. A wrong kernel is off by more than 1 somewhere, of values up to 5 or so.
PROBE_TOLERANCE = 0.05
# Each token is this much as likely as the one before it: the border of the most likely ones, and of
# a share of them, must be clear. Of drawn numbers in bfloat16 many are equal, and of equals at the
# border some kernels keep all.
PROBE_RATIO = 0.8


def make_kernels(
    attention: str,
    config: ModelConfig,
    num_positions: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Kernels:
    """Kernels for this model.

    attention: as `choose.choose` returned it. num_positions: the longest sequence.
    """
    rope = Rope(inverse_frequencies(config), num_positions)
    plain = TorchKernels(rope, dtype, device)
    if attention != choose.FLASHINFER:
        return plain
    made: Kernels = choose.flashinfer().FlashInferKernels(
        rope.cos, rope.sin, config.num_heads, device
    )
    probe(made, plain, config, num_positions, dtype, device)
    return made


@torch.inference_mode()
def probe(
    made: Kernels,
    plain: Kernels,
    config: ModelConfig,
    num_positions: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Hold each kernel against torch's, on two tokens. Raises ConfigError.

    For the reasons that `attention.probe` gives.
    """
    generator = torch.Generator().manual_seed(1)

    def tokens(*width: int) -> Tensor:
        return torch.randn((2, *width), generator=generator).to(device, dtype)

    x, residual, weight = tokens(config.hidden_size), tokens(config.hidden_size), tokens(1)
    weight = weight[0].expand(config.hidden_size).contiguous()
    heads = tokens(config.num_heads + config.num_kv_heads, config.head_dim)
    gate_up = tokens(2 * config.intermediate_size)
    ranks = torch.arange(config.vocab_size, dtype=torch.float64, device=device)
    chances = torch.softmax(math.log(PROBE_RATIO) * torch.stack((ranks, ranks.flip(0))), dim=-1)
    positions = torch.tensor([0, num_positions - 1]).to(device)
    uses: dict[str, Callable[[Kernels], Tensor]] = {
        "rms norm": lambda k: k.rms_norm(x, weight, config.rms_norm_eps),
        "sum and norm": lambda k: torch.stack(
            k.add_rms_norm(x.clone(), residual.clone(), weight, config.rms_norm_eps)
        ),
        "rotation": lambda k: k.rotation(positions)(heads.clone()),
        "silu-mul": lambda k: k.silu_mul(gate_up),
        "top-k and top-p": lambda k: (k.keep_top(chances, [3, 0], [1.0, 0.5]) > 0).float(),
    }
    for name, use in uses.items():
        try:
            found, expected = use(made).float(), use(plain).float()
            worst = float(((found - expected).abs() / (1 + expected.abs())).max())
        except Exception as error:
            raise ConfigError(
                f"FlashInfer's {name} does not run on {device} ({type(error).__name__}: {error}): "
                "kernels that did not come ready-made are compiled, which needs nvcc and ninja; "
                "--attention torch does without, slowly"
            ) from error
        if not worst <= PROBE_TOLERANCE:
            raise ConfigError(
                f"FlashInfer's {name} computes wrong numbers on {device} (off by {worst:g}); "
                "give --attention torch, and report this device"
            )
