"""What memory depends on that changed between releases of torch, and the cuDNN that their wheels bring.

``tables/traces.csv`` has rows of each release: autograd, optimizers and loops were compared. Which attention kernel
CUDA chooses cannot be traced without a GPU; it was read, where :class:`TorchRelease` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from vramcalc.errors import InvalidValue
from vramcalc.inputs.releases import minor_release

Capability = tuple[int, int]
Cudnn = tuple[int, int, int]


@dataclass(frozen=True)
class TorchRelease:
    """A minor release.

    Attributes:
        release: the minor release.
        cudnn: version of cuDNN that each wheel asks for, by the CUDA it is built for.
        default_cuda: of the wheel that ``pip install torch`` takes.
        groups_efficient: memory-efficient attention takes fewer key heads than query heads (``enable_gqa``).
        wide_cudnn: built with a cudnn-frontend of 1.24 or newer, which takes heads of 256.
        basis: where the rules of attention were found: ``read`` in the source, or in the ``library`` of the wheel, too.

    References:
        pytorch 2.13.0 and 2.14.1: .github/scripts/generate_binary_build_matrix.py,
        ``PYTORCH_EXTRA_INSTALL_REQUIREMENTS`` (the wheel's METADATA for 2.14.1, CUDA 13.0);
        aten/src/ATen/native/transformers/cuda/sdp_utils.cpp. 2.14.1's libtorch_cuda.so has
        ``check_batch_size_and_num_heads_dense`` with groups only, and compares cuDNN with 9.22.0 before 256.
    """

    release: tuple[int, int]
    cudnn: Mapping[str, Cudnn]
    default_cuda: str
    groups_efficient: bool
    wide_cudnn: bool
    basis: Literal["read", "library"]


TORCH_RELEASES = (
    TorchRelease(
        (2, 13),
        MappingProxyType({"12.6": (9, 10, 2), "12.9": (9, 20, 0), "13.0": (9, 20, 0), "13.2": (9, 20, 0)}),
        default_cuda="13.0",
        groups_efficient=False,
        wide_cudnn=False,
        basis="read",
    ),
    TorchRelease(
        (2, 14),
        MappingProxyType({"12.6": (9, 10, 2), "13.0": (9, 24, 0)}),
        default_cuda="13.0",
        groups_efficient=True,
        wide_cudnn=True,
        basis="library",
    ),
)
"""The oldest first."""


@dataclass(frozen=True)
class Wheel:
    """A release of torch as it is built for one CUDA.

    Attributes:
        release: of torch.
        cuda: version it is built for, such as ``13.0``.
    """

    release: TorchRelease
    cuda: str

    @property
    def cudnn(self) -> Cudnn:
        """Version of cuDNN."""
        return self.release.cudnn[self.cuda]

    def prefers_cudnn(self, capability: Capability) -> bool:
        """Whether SDPA asks cuDNN before flash; ``TORCH_CUDNN_SDPA_DEPRIORITIZED=1`` is another recipe.

        References:
            pytorch 2.13.0 sdp_utils.cpp, ``check_prefer_cudnn_attention``: cuDNN above 9.15.0, compute capability 9 or
            10; before CUDA 13, of 10 only 10.0 and 10.3.
        """
        major, minor = capability
        every_minor = tuple(map(int, self.cuda.split("."))) >= (13, 0)
        return self.cudnn > (9, 15, 0) and major in (9, 10) and (every_minor or minor in (0, 3))

    def cudnn_takes(self, head_dim: int, capability: Capability) -> bool:
        """Whether cuDNN's kernels take heads of a width, forward and backward.

        References:
            pytorch 2.14.1 sdp_utils.cpp, ``check_cudnn_tensor_shapes`` and ``check_cudnn_d256_bprop_head_dim``.
        """
        datacentre = capability == (9, 0) or capability[0] == 10
        if head_dim == 256 and datacentre and self.release.wide_cudnn and self.cudnn > (9, 22, 0):
            return capability != (10, 7) or self.cudnn > (9, 25, 0)
        return head_dim <= 128 and head_dim % 8 == 0


def minor_torch(version: str) -> TorchRelease:
    """What a version belongs to.

    Raises:
        ValueError: it has not been checked.
    """
    minor = minor_release(version)
    for found in TORCH_RELEASES:
        if found.release == minor:
            return found
    raise ValueError(f"{checked_torch()}: the memory of no other release has been checked against traces")


def wheel_of(version: str, cuda: str | None) -> Wheel:
    """The wheel of a release for a CUDA, of the usual one where none is named.

    Raises:
        ValueError: the release has not been checked.
        InvalidValue: it has no such wheel.
    """
    release = minor_torch(version)
    if cuda is not None and cuda not in release.cudnn:
        expected = f"one of {', '.join(release.cudnn)}, which torch {version} has wheels for"
        raise InvalidValue("cuda", cuda, expected, "or leave it out")
    return Wheel(release, cuda or release.default_cuda)


def checked_torch() -> str:
    """The releases that have been checked, in words."""
    return " or ".join("{}.{}".format(*r.release) for r in TORCH_RELEASES)
