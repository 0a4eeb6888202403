"""Windows that move over images: of convolutions and pools."""

from typing import NamedTuple

import onnx_graphsurgeon as gs

from tilewright.targets.npu.lower import Lowering
from tilewright.targets.npu.operands import Refused
from tilewright.targets.npu.tosa import Tensor


class Window(NamedTuple):
    """How a window moves over an image; `pads` are top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]


def window_of(node: gs.Node, kernel: tuple[int, ...], image: tuple[int, ...]) -> Window:
    """Return the window of a convolution or pool over an image of (height, width)."""

    def two(name: str) -> tuple[int, int]:
        given = [int(v) for v in node.attrs.get(name, ())]
        first, second = (1, 1, *given)[-2:]
        return first, second

    strides, dilations = two("strides"), two("dilations")
    given = [int(v) for v in node.attrs.get("pads", ())]
    if len(given) == 2:
        given = [0, given[0], 0, given[1]]
    auto = str(node.attrs.get("auto_pad", "NOTSET"))
    if auto.startswith("SAME"):
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        more = [
            max((-(-size // stride) - 1) * stride + span - size, 0)
            for size, stride, span in zip(image, strides, spans, strict=True)
        ]
        small = [m // 2 for m in more]
        large = [m - s for m, s in zip(more, small, strict=True)]
        given = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
    top, left, bottom, right = given or (0, 0, 0, 0)
    return Window((kernel[0], kernel[1]), strides, dilations, (top, left, bottom, right))


def fitted(
    lowering: Lowering, image: Tensor, window: Window, out: tuple[int, ...]
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Return an image and pads (top, bottom, left, right) that windows fill exactly.

    TOSA takes no others: what no window reaches at the lower and right edge is left out.
    """
    sizes, ends = list(image.shape), []
    for axis in (0, 1):
        span = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        read = (out[axis] - 1) * window.strides[axis] + span
        end = read - window.pads[axis] - sizes[axis + 1]
        if end > max(window.pads[axis + 2], 0):
            raise Refused("its windows reach beyond the padding")
        sizes[axis + 1] += min(end, 0)
        ends.append(max(end, 0))
    cut = lowering.writer.slice(image, (0, 0, 0, 0), sizes)
    return cut, (window.pads[0], ends[0], window.pads[1], ends[1])
