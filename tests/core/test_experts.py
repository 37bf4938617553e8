"""Experts as one tensor a projection: names, order, what is missing or of another shape, gpt-oss' layouts."""

from __future__ import annotations

from typing import Any

import pytest

from tensorport_hub.core.decode.stacked import Stacked
from tensorport_hub.core.decode.table import bind
from tensorport_hub.core.experts import stack_experts
from tensorport_hub.core.recipe import Recipe
from tensorport_hub.errors import CheckpointError
from tests.core.samples import Stored, made_from, specs

E0 = "model.layers.0.mlp.experts"


def stacked(stored: list[Stored], config: dict[str, Any] | None = None) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in stack_experts(made_from(specs(stored)), config or {})}


def mixtral(layers: int = 1, experts: int = 12, skip: tuple[str, ...] = ()) -> list[Stored]:
    """Sorted by name, as files are: expert 10 stands before expert 2."""
    shapes = {"w1": (6, 4), "w2": (4, 6), "w3": (6, 4)}
    found = [
        (f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight", "BF16", shape)
        for layer in range(layers)
        for expert in range(experts)
        for name, shape in shapes.items()
    ]
    return sorted(one for one in found if one[0] not in skip)


def test_experts_are_stacked_in_their_order() -> None:
    """By number, not by name; everything else stays what and where it is."""
    stored: list[Stored] = [
        ("a.weight", "F32", (3,)),
        *mixtral(),
        ("z.shared_experts.w1.weight", "F32", (2,)),
    ]
    found = stacked(stored)
    stem = "model.layers.0.block_sparse_moe.experts"
    assert list(found) == [
        "a.weight",
        *(f"{stem}.{name}.weight" for name in ("w1", "w2", "w3")),
        "z.shared_experts.w1.weight",
    ]
    one = found[f"{stem}.w1.weight"]
    assert (one.shape, one.dtype.name, one.parameters) == ((12, 6, 4), "BF16", 12 * 24)
    assert [t.name for t in one.decoder.inputs] == [f"{stem}.{n}.w1.weight" for n in range(12)]


def test_quantized_experts_are_stacked() -> None:
    """Each with its companions, as its own decoder."""
    stored: list[Stored] = [
        one
        for n in range(3)
        for one in (
            (f"{E0}.{n}.up_proj.weight", "F8_E4M3", (8, 4)),
            (f"{E0}.{n}.up_proj.weight_scale_inv", "F32", (1, 1)),
            (f"{E0}.{n}.up_proj.bias", "F32", (8,)),
        )
    ]
    found = stacked(stored)
    assert found[f"{E0}.up_proj.weight"].shape == (3, 8, 4)
    assert found[f"{E0}.up_proj.bias"].shape == (3, 8)
    decoder = found[f"{E0}.up_proj.weight"].decoder
    assert (decoder.scheme, decoder.params["experts"], decoder.params["each"]["inputs"]) == ("stacked", 3, 2)
    assert bind("stacked", decoder.inputs, decoder.params) == decoder


def test_experts_of_different_parameters_are_told_one_by_one() -> None:
    """What each decodes by is kept where it is not the same for all."""
    tensors = specs([("a", "F32", (2, 2)), ("b_blocks", "U8", (2, 1, 16)), ("b_scales", "U8", (2, 1))])
    mixed = Stacked((bind("mxfp4", tensors[1:], {}), bind("mxfp4", tensors[1:], {})))
    assert isinstance(mixed.params["each"], dict)
    with pytest.raises(CheckpointError, match="one shape and dtype"):
        Stacked((bind("plain", tensors[:1], {}), bind("mxfp4", tensors[1:], {})))


@pytest.mark.parametrize("config", [{}, {"num_local_experts": 12}, {"text_config": {"num_experts": 12}}])
def test_all_that_is_missing_or_misshapen_is_named(config: dict[str, Any]) -> None:
    """Every missing expert, and every one of another shape, in one error of exit code 3."""
    stem = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"
    gone = (
        stem.format(0, 3, "w1"),
        stem.format(1, 11, "w1"),
        stem.format(1, 11, "w2"),
        stem.format(1, 11, "w3"),
    )
    stored = mixtral(2, skip=gone)
    odd = stem.format(1, 7, "w2")
    stored = [(name, dtype, (4, 7) if name == odd else shape) for name, dtype, shape in stored]
    with pytest.raises(CheckpointError) as raised:
        stacked(stored, config)
    message = raised.value.message
    assert message.startswith("5 problems")
    for name in gone:
        assert f"expert `{name}` is missing: expected 12 experts" in message
    assert f"expert `{odd}` has another shape or dtype: expected BF16 [4, 6]" in message
    assert "got BF16 [4, 7]" in message
    assert "--experts source" in raised.value.hint
    assert raised.value.exit_code == 3


def test_the_last_experts_are_missed_by_the_configuration() -> None:
    """Where no layer has them, only it can know."""
    with pytest.raises(CheckpointError, match=r"experts\.12\.w1\.weight` is missing: expected 13 experts"):
        stacked(mixtral(), {"n_routed_experts": 13})


def test_another_dtype_is_another_shape() -> None:
    """A dense expert among others of another dtype is named."""
    stored = [(f"{E0}.{n}.w.weight", "F32" if n == 2 else "BF16", (2, 2)) for n in range(3)]
    with pytest.raises(CheckpointError, match=r"experts\.2\.w\.weight` has another shape or dtype"):
        stacked(stored)


def test_a_name_that_is_taken() -> None:
    """A stored tensor of the stacked name is an error."""
    stored: list[Stored] = [(f"{E0}.0.up.weight", "F32", (2,)), (f"{E0}.up.weight", "F32", (2,))]
    with pytest.raises(CheckpointError, match="stored too"):
        stacked(stored)


PACKED: list[Stored] = [
    (f"{E0}.gate_up_proj_blocks", "U8", (2, 12, 2, 16)),
    (f"{E0}.gate_up_proj_scales", "U8", (2, 12, 2)),
    (f"{E0}.gate_up_proj_bias", "BF16", (2, 12)),
    (f"{E0}.down_proj_blocks", "U8", (2, 64, 1, 16)),
    (f"{E0}.down_proj_scales", "U8", (2, 64, 1)),
    (f"{E0}.down_proj_bias", "BF16", (2, 64)),
]
GPT_OSS = {"model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 32}


class TestGptOss:
    """Experts that are stored together."""

    def test_packed(self) -> None:
        """Gate and up are rows 0::2 and 1::2 of one decoder; biases too; down stays what it is."""
        found = stacked(PACKED, GPT_OSS)
        assert {name.removeprefix(f"{E0}."): (r.shape, r.every, r.swapped) for name, r in found.items()} == {
            "gate_proj": ((2, 6, 64), (0, 2), False),
            "up_proj": ((2, 6, 64), (1, 2), False),
            "gate_proj_bias": ((2, 6), (0, 2), False),
            "up_proj_bias": ((2, 6), (1, 2), False),
            "down_proj": ((2, 64, 32), None, False),
            "down_proj_bias": ((2, 64), None, False),
        }
        assert sum(recipe.parameters for recipe in found.values()) == 2 * (12 * 64 + 12 + 64 * 32 + 64)

    def test_dense(self) -> None:
        """Stored as transformers has them, [E, in, out], interleaved on the last axis: axes are swapped."""
        stored: list[Stored] = [
            (f"{E0}.gate_up_proj", "BF16", (2, 64, 64)),
            (f"{E0}.gate_up_proj_bias", "BF16", (2, 64)),
            (f"{E0}.down_proj", "BF16", (2, 32, 64)),
        ]
        found = stacked(stored, GPT_OSS)
        assert {name.removeprefix(f"{E0}."): (r.shape, r.every, r.swapped) for name, r in found.items()} == {
            "gate_proj": ((2, 32, 64), (0, 2), True),
            "up_proj": ((2, 32, 64), (1, 2), True),
            "gate_proj_bias": ((2, 32), (0, 2), False),
            "up_proj_bias": ((2, 32), (1, 2), False),
            "down_proj": ((2, 64, 32), None, True),
        }

    @pytest.mark.parametrize(
        ("stored", "config"),
        [
            ((f"{E0}.gate_up_proj", "BF16", (2, 64, 64)), {"model_type": "llama4"}),
            ((f"{E0}.gate_up_proj", "BF16", (2, 64, 64)), {"model_type": "gpt_oss"}),
            ((f"{E0}.gate_up_proj", "BF16", (2, 63, 64)), GPT_OSS),
            ((f"{E0}.gate_up_proj", "BF16", (64, 64)), GPT_OSS),
            ((f"{E0}.gate_up_proj_bias", "BF16", (2, 63)), GPT_OSS),
            ((f"{E0}.down_proj", "BF16", (2, 64, 32)), GPT_OSS),
        ],
    )
    def test_other_layouts_are_refused(self, stored: Stored, config: dict[str, Any]) -> None:
        """What can't be known to be gpt-oss' is an error that names the tensor: rows could be others."""
        with pytest.raises(CheckpointError, match="only gpt-oss' layouts"):
            stacked([stored], config)

    def test_down_of_other_models_passes(self) -> None:
        """It is one array already."""
        found = stacked([(f"{E0}.down_proj", "BF16", (2, 64, 32))], {"model_type": "llama4"})
        assert found[f"{E0}.down_proj"].swapped is False
