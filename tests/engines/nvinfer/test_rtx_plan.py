"""The text of a plan: lines as TensorRT-RTX 1.7.1 wrote them, shortened."""

from __future__ import annotations

from engines.contract import LayerFacts
from engines.nvinfer.rtx_plan import plan_products

PLAN = b"""\x00\x7fvtrt
  tensor={ alignment=128 dims={ "n" 16 8 8 } mem_prop=0 name="x8" offset=0 stride_order={ 3 0 2 1 } type=int8 }
  tensor={ alignment=128 dims={ 32 16 3 3 } name="w8" offset=8 strides={ 144 1 48 16 } type=int8 }
  tensor={ alignment=128 dims={ 32 10 } name="wf" offset=3 rank0=0 type=float }
  sub_tensor={ base="x8" dims={ "n" 32 } name="{odd}^deref" strides={ 32 1 } type=int8 var_offset="hvar^1i64" }
  corrltn={ name="conv1" output={"c" } input={"x8" "w8" "wf" "wf" } scratchspace={"s" } relu=false
  corrltn={ name="conv2" output={"c" } input={"x8" "wf" } scratchspace={"s" } relu=false
  deconvolution={ name="up" output={"c" } input={"wf" "wf" } scratchspace={"s" } relu=false
  fully_connected={ name="fc" output={"{y}" } input={"{odd}^deref" "w8" "wf" } scratchspace={} m=0
  function={ name=__myl_Mul args={ "x8" "w8" } input_args={ "x8" "w8" } }
\xff\xfe"""


def product(name: str, precision: str, *nodes: str, profile: int = 0) -> LayerFacts:
    return LayerFacts(name, "product", precision, nodes or (name,), profile)


def test_products_are_told_apart_by_the_types_of_their_two_operands() -> None:
    assert plan_products(PLAN) == (
        product("conv1", "INT8"),
        product("conv2", "FP32"),
        product("up", "FP32"),
        product("fc", "INT8"),
    )


def test_a_plan_without_text_has_no_products() -> None:
    assert plan_products(b"\x00" * 100) == ()


TWO_PROFILES = b"""vtrtx [profile 1]NLYMheader {
  inputs={ "x.1" }
  tensor={ name="a" type=int8 }
  fully_connected={ name="v_U3+k_U6" output={"c" } input={"a" "a" } m=0 layers="[ONNX Layer: v]\x1f[ONNX Layer: k]" }
}x [profile 1]YNLYMheader {
  inputs={ "x [profile 1].1" }
  tensor={ name="a" type=half }
  fully_connected={ name="v [profile 1]+k [profile 1]" output={"c" } input={"a" "a" } m=0 }
}"""


def test_each_graph_has_tensors_of_its_own_and_is_of_one_profile() -> None:
    assert plan_products(TWO_PROFILES) == (
        product("v_U3+k_U6", "INT8", "v", "k"),
        product("v [profile 1]+k [profile 1]", "FP16", "v", "k", profile=1),
    )


ATTENTION = b"""header {
  function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0x31 args={ } binary = 4 layers="[ONNX Layer: av]\x1f[ONNX Layer: qk]" }
  function={ name=__myl_MulAdd fqn=__myl_MulAdd_0x32 args={ "a" } binary = 5 layers="[ONNX Layer: out]" swap_ab=false }
}\x00struct _gemm_mha_v2_callback {
  using Kernel_traits = fmha::Kernel_traits_v2<
\tfmha::Turing_imma_int8_int32_traits,
\tfmha::Turing_imma_int8_int32_traits,
\tfalse, // uses_bnsh_layout
extern "C" __global__ void _gemm_mha_v2_0x31(
"""


def test_attention_is_told_by_the_source_of_its_kernel() -> None:
    assert plan_products(ATTENTION) == (product("_gemm_mha_v2", "INT8", "av", "qk"),)
    half = ATTENTION.replace(b"Turing_imma_int8_int32_traits", b"Turing_hmma_fp16_traits", 1)
    assert plan_products(half) == (), "one of its two products is not in integers"
