"""One weight of each layout whose rows are not simply stored one after another, and files around it.

The weights are those of the decoders' own tests, with what they must decode to by their formulas; here they
are put into files in any order, cut into parts and given a plan, without any configuration or name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tensorport_hub.core.decode.decoder import Decoder
from tensorport_hub.core.decode.table import bind
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.layout import lay_out
from tensorport_hub.core.plan import Options, Plan
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.core.tensor import TensorSpec
from tests.core.decode import (
    test_awq,
    test_bitnet,
    test_bnb4,
    test_gptq,
    test_hqq,
    test_modelopt_int4,
    test_quanto,
    test_sparse,
)
from tests.core.held import made

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Weight:
    """A decoder, the bytes of its inputs, and the values before the last rounding."""

    decoder: Decoder
    stored: Sequence[Bytes]
    values: npt.NDArray[Any]

    @property
    def expected(self) -> bytes:
        """The output file's data."""
        return self.values.astype(self.decoder.dtype.numpy).tobytes()


def _case(case: Any) -> Weight:
    return Weight(case.decoder, case.stored, case.want)


def _packed(stored: Mapping[str, npt.NDArray[Any]], values: npt.NDArray[Any], name: str) -> Weight:
    decoder = made(stored)[name].decoder
    return Weight(
        decoder, [np.frombuffer(stored[t.name].tobytes(), np.uint8) for t in decoder.inputs], values
    )


def _bitnet() -> Weight:
    codes = np.random.default_rng(2).integers(0, 3, (24, 20))
    scale = np.array([1.7], ml_dtypes.bfloat16)
    decoder = test_bitnet.bound(test_bitnet.BitnetTimes, 6, 20)
    values = (codes.astype(np.float32) - 1) * scale.astype(np.float32)
    return Weight(decoder, [test_bitnet.packed(codes), scale.view(np.uint8)], values)


LAYOUTS: dict[str, Callable[[], Weight]] = {
    "gptq": lambda: _case(test_gptq.Case(rows=40, columns=64)),
    "gptq act-order": lambda: _case(test_gptq.Case(rows=40, columns=64, order="shuffled")),
    "gptq 3 bits": lambda: _case(test_gptq.Case(bits=3, rows=40, columns=64, order="shuffled")),
    "gptq planes": lambda: _case(test_gptq.Case(bits=3, rows=64, columns=64, packing="planar", zeros="v2")),
    "gptq experts": lambda: _case(test_gptq.Case(rows=16, columns=32, lead=(5,), order="each")),
    "gptq experts, one order": lambda: _case(test_gptq.Case(rows=16, columns=32, lead=(5,), order="plain")),
    "awq": lambda: _case(test_awq.Case("gemm", rows=40, columns=37, size=10)),
    "awq experts": lambda: _case(test_awq.Case("gemm", rows=16, columns=20, size=10, lead=(3,))),
    "quark int4": lambda: _case(test_awq.Case("gemm", rows=32, columns=32, signed=1, scale="BF16")),
    "awq gemv_fast": lambda: _case(test_awq.Case("gemv_fast", rows=16, columns=64)),
    "bitnet": _bitnet,
    **{
        f"hqq {nbits} bits, axis {axis}": lambda nbits=nbits, axis=axis: _packed(
            *test_hqq.pack((32, 24), nbits, 8, axis), "m.weight"
        )
        for nbits, axis in [(4, 1), (4, 0), (3, 1), (2, 0), (1, 1), (8, 0)]
    },
    "quanto": lambda: _packed(*test_quanto.pack((13, 40), 4), "m.weight"),
    "quanto groups": lambda: _packed(*test_quanto.pack((7, 160), 2, 32), "m.weight"),
    "bitmask": lambda: Weight(*test_sparse.sample("any", rows=23, columns=21)),
    "bitmask, scaled": lambda: Weight(*test_sparse.sample("any", "I8", 20, 24, scales=(20, 3))),
    "bitmask, offsets": lambda: Weight(*test_sparse.sample("offsets", rows=23, columns=21)),
    "bitmask, nothing": lambda: Weight(*_nothing()),
    "bnb4 odd rows": lambda: _packed(*test_bnb4.pack((17, 35), blocksize=32), test_bnb4.WEIGHT),
    "bnb4 odd rows, nested": lambda: _packed(
        *test_bnb4.pack((17, 35), blocksize=32, nested=True), test_bnb4.WEIGHT
    ),
    "modelopt int4": lambda: Weight(*test_modelopt_int4.sample(rows=14, columns=20)),
    "float8 in blocks": lambda: _float8((21, 24), rows=4),
    "float8": lambda: _float8((21, 24), rows=21),
}


def _nothing() -> tuple[Decoder, list[Bytes], npt.NDArray[Any]]:
    """A matrix of zeros: no value is stored at all."""
    tensors = test_sparse.specs([("compressed", "BF16", (0,)), ("bitmask", "U8", (9, 2))])
    decoder = test_sparse.SparseBitmask(*tensors, columns=12, group_size=12, scaled="no", offsets="no")
    return decoder, [np.empty(0, np.uint8), np.zeros(18, np.uint8)], np.zeros((9, 12), ml_dtypes.bfloat16)


def _float8(shape: tuple[int, int], rows: int) -> Weight:
    """Scales that several parts share, wholly or at their edges."""
    rng = np.random.default_rng(4)
    weight = rng.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.5, 2, (-(-shape[0] // rows), 1)).astype(np.float32)
    stored = {"m.weight": weight, "m.weight_scale_inv": scale}
    tensors = test_sparse.specs([("w", "F8_E4M3", shape), ("s", "F32", scale.shape)])
    params = {"stack": 1, "rows": rows, "cols": shape[1], "codes": "F8_E4M3", "returns": "BF16"}
    decoder = bind("float8", tensors, params)
    values = weight.astype(np.float32) * np.repeat(scale, rows, axis=0)[: shape[0]]
    return Weight(decoder, [np.frombuffer(a.tobytes(), np.uint8) for a in stored.values()], values)


@dataclass(frozen=True)
class Checkpoint:
    """Weights in files.

    Attributes:
        files: contents by path.
        plan: what is to be made of them.
        expected: the data of each output tensor, by its name.
    """

    files: Mapping[str, bytes]
    plan: Plan
    expected: Mapping[str, bytes]


def checkpoint(
    weights: Mapping[str, Weight],
    order: Sequence[tuple[str, int] | int],
    files: int = 1,
    *,
    shard_size: int = 1 << 30,
    **options: Any,
) -> Checkpoint:
    """The weights' inputs (name, number) and fillers (of so many bytes) in this order, dealt to the files."""
    contents = [bytearray(b"header " * 9) for _ in range(files)]
    places: dict[tuple[str, int], tuple[str, int, int]] = {}
    for i, one in enumerate(order):
        data = contents[i % files]
        if isinstance(one, int):
            data += bytes(range(256)) * (one // 256) + bytes(one % 256)
            continue
        start = len(data)
        data += weights[one[0]].stored[one[1]].tobytes()
        places[one] = (f"m-{i % files}.safetensors", start, len(data))
    recipes = []
    for name, weight in weights.items():
        specs = [
            TensorSpec(f"{name}.{i}", tensor.dtype, tensor.shape, *places[name, i])
            for i, tensor in enumerate(weight.decoder.inputs)
        ]
        decoder = bind(weight.decoder.scheme, specs, weight.decoder.params)
        recipes.append(Recipe(name, decoder, decoder.dtype))
    stored = {f"m-{i}.safetensors": bytes(data) for i, data in enumerate(contents)}
    weight_files = tuple(SourceFile(path, len(data)) for path, data in stored.items())
    parts = lay_out(recipes, shard_size=shard_size)
    chosen = Options(shard_size=shard_size, **options)
    plan = Plan("org/model", "0" * 40, weight_files, tuple(recipes), parts, chosen)
    return Checkpoint(stored, plan, {name: weight.expected for name, weight in weights.items()})


def least_shard(weights: Mapping[str, Weight], rows: int) -> int:
    """A shard size at which every weight is cut into files of at least so many rows."""
    sizes = [rows * len(weight.expected) // weight.decoder.shape[0] for weight in weights.values()]
    return 128 + max(sizes)
