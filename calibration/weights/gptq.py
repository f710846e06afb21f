"""Weights of products rounded so that the errors of a sum cancel on the data that they are multiplied by.

What the weights of one channel bring to the product's error, on average over its rows x, is a quadratic form of their
errors e: e H e with H the mean of x x', the covariance where a bias takes the mean back. Rounding to the nearest makes
each error least, but not the form (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML
2020). Here weights are rounded one by one, those with the most data first, and what each brings is taken back by those
that are still exact (Frantar et al., "GPTQ", ICLR 2023, after "Optimal Brain Compression", NeurIPS 2022). Then each
code moves to where the form is least with all others as they are, until none does (Behdin et al., "QuantEase", 2023).
It begins there, and at the nearest codes; each channel keeps the better of the two, so that the form is never above
that of rounding to the nearest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.arrays import Floats
from calibration.graph.editing import constant
from calibration.precision.placement import ChosenCodes, QdqPlacement, QuantizedWeight
from calibration.precision.scale import LEVELS_OF_4_BITS, NUM_LEVELS, spread_scales
from calibration.precision.weights import bias_of, rounded_weight
from calibration.ranges.moments import Moments, SumWindow
from calibration.weights.sums import BLOCK, as_weight, by_group, changed_in_turn, damped, sum_window, upper_factor

NEAR = 1e-3
"""Steps from a code within which a weight that is added in pairs keeps it."""
MOST_AT_ONCE = 2**22
"""Weights that are rounded together."""
MOST_SWEEPS = 20


@dataclass(frozen=True)
class Product:
    """A product whose weight can be rounded by its data."""

    node: ir.Node
    weight: QuantizedWeight
    window: SumWindow

    @property
    def num_moments(self) -> int:
        """Numbers of its second moments."""
        array = constant(self.node.inputs[1])
        assert array is not None
        num_terms = array[0].size if self.window.kernel else array.size // array.shape[self.weight.axis or 0]
        return int(self.window.num_groups * num_terms**2)


@dataclass(frozen=True)
class RoundedProduct:
    """The codes, and the mean square that their errors, and those of the nearest codes, bring to the product."""

    chosen: ChosenCodes
    error: float
    error_of_nearest: float


def products_of(graph: ir.Graph, placement: QdqPlacement) -> list[Product]:
    """The products of a placement that can be rounded so: convolutions, and matrix products with a matrix."""
    nodes = {node.name or "": node for node in graph}
    products = []
    for weight in placement.weights:
        node = nodes[weight.reader.node]
        if weight.reader.index == 1 and weight.axis is not None and (window := sum_window(node)) is not None:
            products.append(Product(node, weight, window))
    return products


def rounded_product(product: Product, moments: Moments) -> RoundedProduct:
    """Round a product's weight by the moments of its data, with the scales that it has anyway."""
    node, weight = product.node, product.weight
    array = constant(node.inputs[1])
    assert array is not None
    plain = rounded_weight(node, weight)
    has_bias = plain.mean_shift is not None and bias_of(node, len(plain.mean_shift)) is not None
    form = damped(moments.covariance() if has_bias else moments.second)
    steps = np.broadcast_to(spread_scales(plain.scales, array.shape, weight.axis, weight.block), array.shape)
    axis = 0 if product.window.kernel else weight.axis or 0
    limit = LEVELS_OF_4_BITS if weight.bits == 4 else NUM_LEVELS
    forms = _Forms.of(by_group(array, axis, form), by_group(steps, axis, form), form, limit, weight)
    pieces = [_rounded(piece) for piece in _pieces(forms)]
    codes = np.concatenate([codes for codes, _, _ in pieces], axis=1)
    integers = as_weight(codes, array.shape, axis).astype(np.int16)
    errors, nearest = (float(sum(piece[which].sum() for piece in pieces)) for which in (1, 2))
    return RoundedProduct(ChosenCodes(integers, plain.scales), errors, nearest)


@dataclass(frozen=True)
class _Forms:
    """Weights in G groups, each M channels of K: (G, M, K); and the G forms of their errors."""

    weights: Floats
    steps: Floats
    least: Floats
    """Of the codes."""
    most: Floats
    form: Floats
    """(G, K, K)"""

    @staticmethod
    def of(weights: Floats, steps: Floats, form: Floats, limit: int, how: QuantizedWeight) -> _Forms:
        """``limit`` is the largest code. Weights that are added in pairs take one of the two next to them."""
        least, most = np.full(weights.shape, -limit, np.float64), np.full(weights.shape, limit, np.float64)
        if how.in_pairs:
            exact = np.clip(weights / steps, -limit, limit)
            near = np.abs(exact - np.rint(exact)) < NEAR
            least, most = (np.where(near, np.rint(exact), bound(exact)) for bound in (np.floor, np.ceil))
        return _Forms(weights, steps, least, most, form)

    def rows(self, begin: int, end: int) -> _Forms:
        """Some of the channels of each group."""
        part = slice(begin, end)
        weights, steps = self.weights[:, part], self.steps[:, part]
        return _Forms(weights, steps, self.least[:, part], self.most[:, part], self.form)

    def nearest(self) -> Floats:
        """The codes."""
        return np.clip(np.rint(self.weights / self.steps), self.least, self.most)

    def errors(self, codes: Floats) -> Floats:
        """(G, M)"""
        errors = codes * self.steps - self.weights
        return np.asarray(np.einsum("gmk,gmk->gm", errors @ self.form, errors))


def _pieces(forms: _Forms) -> Iterator[_Forms]:
    groups, channels, terms = forms.weights.shape
    size = max(MOST_AT_ONCE // (groups * terms), 1)
    for begin in range(0, channels, size):
        yield forms.rows(begin, begin + size)


def _rounded(forms: _Forms) -> tuple[Floats, Floats, Floats]:
    """(G, M, K) codes; (G, M) of the form by them, and by the nearest."""
    nearest = forms.nearest()
    candidates = [_descended(forms, codes) for codes in (_fed_back(forms), nearest)]
    errors = [forms.errors(codes) for codes in candidates]
    codes = np.where((errors[0] <= errors[1])[:, :, None], *candidates)
    return codes, np.minimum(*errors), forms.errors(nearest)


def _fed_back(forms: _Forms) -> Floats:
    """Codes that are rounded one by one, and the rest after each moved so that the form is least."""
    order = np.argsort(-np.einsum("gkk->gk", forms.form), axis=-1, kind="stable")
    form = np.take_along_axis(np.take_along_axis(forms.form, order[:, :, None], 1), order[:, None, :], 2)
    weights, steps, least, most = (
        np.take_along_axis(each, order[:, None, :], 2) for each in (forms.weights, forms.steps, forms.least, forms.most)
    )
    codes = np.empty_like(weights)

    def settle(rest: Floats, at: int) -> Floats:
        codes[:, :, at] = np.clip(np.rint(rest[:, :, at] / steps[:, :, at]), least[:, :, at], most[:, :, at])
        return np.asarray(codes[:, :, at] * steps[:, :, at])

    changed_in_turn(weights, upper_factor(form), settle)
    restored = np.empty_like(codes)
    np.put_along_axis(restored, np.broadcast_to(order[:, None, :], codes.shape), codes, 2)
    return restored


def _descended(forms: _Forms, codes: Floats) -> Floats:
    """Codes that are moved one by one to where the form is least with all others as they are, until none moves."""
    codes, form = codes.copy(), forms.form
    diagonal, num = np.einsum("gkk->gk", form), codes.shape[-1]
    slopes = (codes * forms.steps - forms.weights) @ form
    for _ in range(MOST_SWEEPS):
        num_moved = 0
        for begin in range(0, num, BLOCK):
            end = min(begin + BLOCK, num)
            moved = np.zeros((*codes.shape[:2], end - begin))
            for at in range(begin, end):
                steps = forms.steps[:, :, at]
                best = codes[:, :, at] - np.rint(slopes[:, :, at] / (steps * diagonal[:, at, None]))
                best = np.clip(best, forms.least[:, :, at], forms.most[:, :, at])
                by = (best - codes[:, :, at]) * steps
                if by.any():
                    codes[:, :, at], moved[:, :, at - begin] = best, by
                    slopes[:, :, begin:end] += by[:, :, None] * form[:, at, None, begin:end]
            if moved.any():
                num_moved += 1
                slopes[:, :, :begin] += moved @ form[:, begin:end, :begin]
                slopes[:, :, end:] += moved @ form[:, begin:end, end:]
        if not num_moved:
            break
    return codes


def parts_of(products: Sequence[Product], most: int) -> Iterator[list[Product]]:
    """Products in turn, so many together that their moments are not more than ``most`` numbers, or one."""
    part: list[Product] = []
    sizes: dict[SumWindow, int] = {}
    for product in products:
        if part and sum((sizes | {product.window: product.num_moments}).values()) > most:
            yield part
            part, sizes = [], {}
        part.append(product)
        sizes[product.window] = product.num_moments
    if part:
        yield part
