"""Checks of printed equations on tensors: whether the shapes fit, and whether two are the same."""

import ast
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import torch

from lorasp.claims import Claim, Document
from lorasp.claims.counts import shapes_of
from lorasp.claims.printed import Outcome, listed
from lorasp.errors import WorkError

RANK = 16
LEVELS = 7  # of a 4-bit code on each side of zero
Dimensions = dict[str, int]
Shape = tuple[int, ...]


class ShapeError(ValueError):
    """The shapes of an expression's parts do not fit each other."""


def quantize(x: torch.Tensor) -> torch.Tensor:
    """qN of the paper, as any 4-bit format: to the nearest of 15 levels up to the largest entry."""
    if x.is_meta:
        return x.clone()
    step = x.abs().max() / LEVELS
    return torch.round(x / step) * step


def evaluate(expression: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The value of an expression of names, +, -, * (elementwise), @, .T and q().

    Raises ShapeError where two shapes do not fit (nothing is broadcast: the page has matrices), and
    WorkError where the expression holds anything else or an unknown name.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise WorkError(f"{expression!r} is no expression: {error.msg}") from error
    return _value(tree, expression, tensors)


def _value(node: ast.AST, expression: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    value = functools.partial(_value, expression=expression, tensors=tensors)
    what = ast.get_source_segment(expression, node) or expression
    match node:
        case ast.Name(id=name) if name in tensors:
            return tensors[name]
        case ast.Attribute(value=inner, attr="T"):
            return value(inner).T
        case ast.Call(func=ast.Name(id="q"), args=[inner], keywords=[]):
            return quantize(value(inner))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -value(inner)
        case ast.BinOp(left=left, op=operator, right=right):
            return _combine(operator, value(left), value(right), what, expression)
    raise WorkError(
        f"{expression!r} holds {what!r}; allowed are +, -, *, @, .T, q() and the names "
        f"{', '.join(sorted(tensors))}"
    )


def _combine(
    operator: ast.operator, left: torch.Tensor, right: torch.Tensor, what: str, expression: str
) -> torch.Tensor:
    sizes = f"{_size(left.shape)} and {_size(right.shape)}"
    if isinstance(operator, ast.MatMult):
        if left.shape[1] != right.shape[0]:
            raise ShapeError(f"{what}: a matrix product of {sizes}")
        return left @ right
    if not isinstance(operator, (ast.Add, ast.Sub, ast.Mult)):
        raise WorkError(f"{expression!r} holds {what!r}; allowed operators are +, -, * and @")
    if left.shape != right.shape:
        raise ShapeError(f"{what}: elementwise on {sizes}")
    if isinstance(operator, ast.Mult):
        return left * right
    return left + right if isinstance(operator, ast.Add) else left - right


def _size(shape: Shape) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape))


def shapes(
    document: Document,
    claim: Claim,
    *,
    expression: str,
    matrices: dict[str, Any],
    models: list[str],
    fits: str | None = None,
) -> Outcome:
    """A printed expression has the shape of W, whichever way round its matrices are stored.

    `matrices` gives each name its shape, such as [r, in]; `any` stands for a name whose shape is
    not given and may be that of any other. Each is tried as it is and transposed, for every
    distinct shape (in, out) of a linear layer of the public `models`; W is [out, in]. `fits` is an
    expression that does fit, with the same names and one more mask of each matrix's own.
    """
    layers = sorted(
        {size for model in models for sizes in shapes_of(model).linear.values() for size in sizes},
        key=lambda size: (size[0] != size[1], size),
    )
    rows: list[dict[str, Any]] = []
    evidence = []
    for inside, outside in layers:
        dimensions = {"r": RANK, "in": inside, "out": outside}
        ways, problem = _ways(expression, matrices, dimensions)
        rows.append(
            {
                "in": inside,
                "out": outside,
                "orientations": len(_orientations(matrices, dimensions)),
                "valid": len(ways),
                "example": ways[0] if ways else problem,
            }
        )
    square = [row for row in rows if row["in"] == row["out"]]
    other = [row for row in rows if row["in"] != row["out"]]
    for what, part in (("Square", square), ("Other", other)):
        if part:
            size = _size((part[0]["out"], part[0]["in"]))
            evidence.append(
                f"{what} weights: {sum(row['valid'] > 0 for row in part)} of {len(part)} shapes "
                f"fit; {size}: {part[0]['example']}."
            )
    if fits:
        evidence.append(_repair(fits, matrices, layers))
    fitting = [row for row in rows if row["valid"]]
    found = f"{expression} has the shape of W for {len(fitting)} of {len(rows)} layer shapes of "
    found += f"{listed(models)}, over all orientations"
    if fitting and all(row in square for row in fitting) and other:
        found += "; it fits square weights alone"
    verdict = "reproduced" if len(fitting) == len(rows) else "inconsistent"
    return Outcome(verdict, found, evidence, rows)


def _orientations(matrices: dict[str, Any], dimensions: Dimensions) -> list[dict[str, Shape]]:
    """Every assignment of shapes to the names."""
    named = {
        name: tuple(_length(size, dimensions) for size in shape)
        for name, shape in matrices.items()
        if shape != "any"
    }
    both = {name: sorted({shape, shape[::-1]}) for name, shape in named.items()}
    every = sorted({shape for shapes in both.values() for shape in shapes})
    options = [both.get(name, every) for name in matrices]
    return [dict(zip(matrices, chosen, strict=True)) for chosen in itertools.product(*options)]


def _length(size: str, dimensions: Dimensions) -> int:
    if size not in dimensions:
        raise WorkError(f"a matrix has a side {size!r}; allowed are {', '.join(dimensions)}")
    return dimensions[size]


def _ways(
    expression: str, matrices: dict[str, Any], dimensions: Dimensions
) -> tuple[list[str], str]:
    """The orientations in which an expression has W's shape, and why the last other one has not."""
    weight = (dimensions["out"], dimensions["in"])
    ways, problem = [], ""
    for shapes in _orientations(matrices, dimensions):
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        tensors["W"] = torch.empty(weight, device="meta")
        try:
            shape = tuple(evaluate(expression, tensors).shape)
        except ShapeError as error:
            problem = str(error)
            continue
        if shape == weight:
            ways.append(", ".join(f"{name} {_size(size)}" for name, size in shapes.items()))
        else:
            problem = f"the result is {_size(shape)}, W is {_size(weight)}"
    return ways, problem


def _repair(expression: str, matrices: dict[str, Any], layers: list[tuple[int, int]]) -> str:
    masks = {f"S_{name}": shape for name, shape in matrices.items() if shape != "any"}
    own = {name: shape for name, shape in matrices.items() if shape != "any"} | masks
    valid = sum(
        bool(_ways(expression, own, {"r": RANK, "in": inside, "out": outside})[0])
        for inside, outside in layers
    )
    return f"{expression}, a mask of its own for each matrix, fits {valid} of {len(layers)}."


def same(
    document: Document,
    claim: Claim,
    *,
    expressions: list[str],
    matrices: dict[str, list[str]],
    zero: list[str] | None = None,
) -> Outcome:
    """Printed expressions that should be one quantity are equal, on random float64 matrices.

    Names that begin with S are masks of 0 and 1, and their complement is the name with an N before
    it; those under `zero` are zero, as B is at the start. in, r and out are all different.
    """
    dimensions = {"r": 4, "in": 24, "out": 32}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, sides in {"W": ["out", "in"], **matrices}.items():
        shape = [_length(side, dimensions) for side in sides]
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        tensors[name] = (drawn > 0).double() if name.startswith("S") else drawn
        if name.startswith("S"):
            tensors[f"N{name}"] = 1 - tensors[name]
        if name in (zero or ()):
            tensors[name] = torch.zeros_like(drawn)
    try:
        values = [evaluate(expression, tensors) for expression in expressions]
    except ShapeError as error:
        return Outcome("inconsistent", f"the shapes do not fit: {error}")
    first, rows, different = values[0], [], False
    for expression, value in zip(expressions, values, strict=True):
        row: dict[str, Any] = {"expression": expression, "shape": _size(tuple(value.shape))}
        if value.shape == first.shape:
            row["difference"] = float((value - first).norm() / first.norm())
        rows.append(row)
        different |= row.get("difference", 1) > 1e-12
    evidence = [f"Drawn: W {_size((dimensions['out'], dimensions['in']))}, r = {dimensions['r']}."]
    evidence += [
        f"{row['expression']} is {row['shape']}"
        + (
            f" and differs from {expressions[0]} by {row['difference']:.0%} of its norm."
            if "difference" in row
            else f", not {rows[0]['shape']} as {expressions[0]}."
        )
        for row in rows[1:]
    ]
    found = f"{' and '.join(expressions)} are {'not ' if different else ''}the same"
    return Outcome("inconsistent" if different else "reproduced", found, evidence, rows)
