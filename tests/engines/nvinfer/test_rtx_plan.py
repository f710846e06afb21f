"""The text of a plan: lines as TensorRT-RTX 1.7.1 wrote them, shortened."""

from __future__ import annotations

from engines.nvinfer.rtx_plan import plan_products

PLAN = b"""\x00\x7fvtrt
  tensor={ alignment=128 dims={ "n" 16 8 8 } mem_prop=0 name="x8" offset=0 stride_order={ 3 0 2 1 } type=int8 }
  tensor={ alignment=128 dims={ 32 16 3 3 } name="w8" offset=8 strides={ 144 1 48 16 } type=int8 }
  tensor={ alignment=128 dims={ 32 10 } name="wf" offset=3 rank0=0 type=float }
  sub_tensor={ base="x8" dims={ "n" 32 } name="{odd}^deref" offset=0 strides={ 32 1 } type=int8 }
  corrltn={ name="conv1" output={"c" } input={"x8" "w8" "wf" "wf" } scratchspace={"s" } relu=false
  corrltn={ name="conv2" output={"c" } input={"x8" "wf" } scratchspace={"s" } relu=false
  fully_connected={ name="fc" output={"{y}" } input={"{odd}^deref" "w8" "wf" } scratchspace={} m=0
  function={ name=__myl_Mul args={ "x8" "w8" } input_args={ "x8" "w8" } }
\xff\xfe"""


def test_products_are_told_apart_by_the_type_of_their_two_operands() -> None:
    found = plan_products(PLAN)
    assert found.products == {"conv1", "conv2", "fc"}
    assert found.integer == {"conv1", "fc"}
    assert found.precisions == {"conv1": "INT8", "conv2": "INT8", "fc": "INT8"}


def test_a_plan_without_text_has_no_products() -> None:
    assert plan_products(b"\x00" * 100).products == frozenset()
