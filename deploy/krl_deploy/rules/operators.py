"""Which ONNX operators TensorRT's parser takes, in which types and with which restrictions, by version.

The tables are those of NVIDIA's parser: ``operators.md`` of TensorRT 10.1 and 10.15, and the changelogs for what
came between and after. Operators that they do not list are unknown.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CHANGELOG",
    "OPERATORS_MD",
    "OPSETS",
    "REDUCTIONS",
    "RTX_LACKS",
    "RTX_REFUSES",
    "SINCE",
    "TYPES",
    "UNSUPPORTED",
    "Version",
    "source_of",
]

Version = tuple[int, ...]

OPERATORS_MD: Final = "onnx/onnx-tensorrt: docs/operators.md (10.1, 10.15)"
CHANGELOG: Final = "onnx/onnx-tensorrt: docs/Changelog.md"
_RELEASES: Final = "NVIDIA/TensorRT: CHANGELOG.md and the release notes of 11.2"

OPSETS: Final[tuple[tuple[Version, int, str], ...]] = (
    ((10, 0), 20, "onnx/onnx-tensorrt: docs/operators.md of TensorRT 10.0 and 10.1"),
    ((10, 15), 24, "onnx/onnx-tensorrt: docs/operators.md of TensorRT 10.15"),
    ((11, 0), 25, "NVIDIA's ONNX opset guide for TensorRT 11.x"),
)
"""From which version on which newest opset is documented, and where; the oldest is 9 throughout."""

_FLOAT = "FLOAT FLOAT16 BFLOAT16"
_NUMBER = f"{_FLOAT} INT32 INT64"
_ANY = f"{_NUMBER} BOOL"

_BY_TYPES = {
    _FLOAT: """
        Acos Acosh Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos
        Cosh CumSum Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
        GroupNormalization GRU HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LayerNormalization
        LeakyRelu Log LogSoftmax LRN LSTM LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization
        ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike
        Reciprocal Resize RMSNormalization RNN RotaryEmbedding Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax
        Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample""",
    _NUMBER: """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod
        Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TensorScatter
        TopK""",
    _ANY: """
        Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot
        Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where""",
    f"{_ANY} UINT8": "Cast CastLike",
    "BOOL": "And Not Or Xor",
    "FLOAT FLOAT16": """
        BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign""",
    "FLOAT": "STFT",
    "INT8": "DequantizeLinear",
}

TYPES: Final[dict[str, frozenset[str]]] = {
    operator: frozenset(types.split()) for types, operators in _BY_TYPES.items() for operator in operators.split()
}
"""For each operator of the tables that some TensorRT takes, the element types of its data input."""

SINCE: Final[dict[str, tuple[Version, str]]] = {
    "BlackmanWindow": ((10, 4), CHANGELOG),
    "HammingWindow": ((10, 4), CHANGELOG),
    "HannWindow": ((10, 4), CHANGELOG),
    "STFT": ((10, 5), CHANGELOG),
    "Attention": ((10, 14), CHANGELOG),
    "RMSNormalization": ((10, 15), CHANGELOG),
    "RotaryEmbedding": ((10, 15), CHANGELOG),
    "TensorScatter": ((10, 15), CHANGELOG),
    "Swish": ((11, 0), _RELEASES),
    "DFT": ((11, 2), _RELEASES),
}
"""The first version that takes an operator, if TensorRT 10.3 does not, with its source."""

RTX_LACKS: Final = frozenset({"DFT", "DeformConv", "NonMaxSuppression", "NonZero", "RoiAlign"})
"""Operators of TensorRT's plugins, which TensorRT-RTX 1.7.1 comes without: its parser or builder refuses them."""

REDUCTIONS: Final = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)
"""Operators that reduce some axes."""

_REFUSED_BY_TYPES = {
    "INT32 INT64": """
        Einsum Gelu Gemm MatMul Mean PRelu ReduceL2 ReduceLogSum ReduceLogSumExp Resize Round Softplus TensorScatter
        Upsample""",
    "INT32": "Relu",
    "INT8": """
        Clip Einsum Gelu LpPool Mean Mod Pow ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean Round Softplus
        TensorScatter""",
    "BOOL": "DepthToSpace GridSample ReduceMax ReduceMin Resize SpaceToDepth TensorScatter TopK Upsample",
    "FLOAT16": "Celu MeanVarianceNormalization",
    "BFLOAT16": """
        Celu ConvTranspose GRU HardSwish LpNormalization LpPool MeanVarianceNormalization Mish""",
}

RTX_REFUSES: Final[dict[str, frozenset[str]]] = {
    operator: frozenset(
        dtype
        for types, operators in _REFUSED_BY_TYPES.items()
        if operator in operators.split()
        for dtype in types.split()
    )
    for named in _REFUSED_BY_TYPES.values()
    for operator in named.split()
}
"""Types that ONNX allows for an operator and TensorRT-RTX 1.7.1 refuses; each was asked in a graph of that operator."""

UNSUPPORTED: Final = frozenset(
    [
        "AffineGrid",
        "Bernoulli",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CausalConvWithState",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "Det",
        "DynamicQuantizeLinear",
        "ImageDecoder",
        "LinearAttention",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
        "Unique",
    ]
)
"""Operators that the tables list as not supported."""


def source_of(operator: str) -> str:
    """Return where the support of an operator is documented."""
    return SINCE[operator][1] if operator in SINCE else OPERATORS_MD
