"""Sets of ONNX operators of the same kind, each written once."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CONVOLUTIONS",
    "FLOAT_CONVOLUTIONS",
    "INTEGER",
    "INTEGER_CONVOLUTIONS",
    "KEEPS_INTEGERS",
    "KEEPS_SIGNS",
    "MOVES_ACROSS_QDQ",
    "MOVES_OR_CASTS",
    "MOVES_STORED_INTEGERS",
    "NEVER_NEGATIVE",
    "PLUGINS",
    "PLUGIN_DOMAIN",
    "POINTWISE",
    "QDQ",
    "QUANTIZED",
    "STANDARD_INTEGER",
    "WEIGHTED",
]

CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})
"""Convolutions, as exporters write them."""

WEIGHTED: Final = CONVOLUTIONS | {"Gemm", "MatMul"}
"""Operators that multiply an activation by a weight."""

QDQ: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""The two operators of a Q/DQ pair."""

STANDARD_INTEGER: Final = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)
"""Operators of the ONNX standard that compute on integers themselves."""

INTEGER: Final = STANDARD_INTEGER | {
    *("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool"),
    *("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QGemm", "QAttention"),
    *("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
}
"""All operators that compute on integers themselves; most beyond the standard are ONNX Runtime's."""

QUANTIZED: Final = QDQ | INTEGER
"""Operators by which a graph is known to be quantized already."""

FLOAT_CONVOLUTIONS: Final = CONVOLUTIONS | {"FusedConv", "NhwcFusedConv"}
"""Convolutions in floating point after ONNX Runtime's optimizer."""

INTEGER_CONVOLUTIONS: Final = frozenset({"QLinearConv", "ConvInteger"})
"""Convolutions on integers after ONNX Runtime's optimizer."""

_RESHAPES: Final = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# Each set below is these operators, which only move values, and further ones.

MOVES_OR_CASTS: Final = _RESHAPES | {"Cast"}
"""Operators that give every value of their input once, in another order or type. Pattern searches skip them."""

MOVES_ACROSS_QDQ: Final = _RESHAPES | {"MaxPool"}
"""Operators that TensorRT moves across a Q/DQ pair, since they only move or choose values."""

MOVES_STORED_INTEGERS: Final = _RESHAPES | {"DepthToSpace", "MaxPool", "Pad", "Slice"}
"""Operators of one input that ONNX Runtime's CPU provider runs on stored integers. A Pad's value is stored as an
integer too."""

KEEPS_INTEGERS: Final = _RESHAPES | {
    *("Concat", "DepthToSpace", "Expand", "Gather", "MaxPool", "Slice", "SpaceToDepth", "Split"),
}
"""Operators that do the same to integers as to the real values of these, at one scale."""

KEEPS_SIGNS: Final = (KEEPS_INTEGERS - {"Concat"}) | {"AveragePool", "Cast", "GlobalAveragePool", "GlobalMaxPool"}
"""Operators of one input that give no negative value if their input has none."""

NEVER_NEGATIVE: Final = frozenset({"HardSigmoid", "Relu", "Sigmoid", "Softmax"})
"""Operators that give no negative value for any input."""

POINTWISE: Final = frozenset(
    {"Add", "BatchNormalization", "Cast", "Clip", "Concat", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish"}
    | {"Identity", "LeakyRelu", "Max", "Min", "Mul", "PRelu", "Relu", "Sigmoid", "Softplus", "Split", "Sub", "Tanh"}
)
"""Operators whose output at a pixel depends on their inputs at that pixel alone."""

PLUGIN_DOMAIN: Final = "TRT"
"""Domain that TensorRT's plugins are given where a file names none; TensorRT looks them up by their names alone."""

PLUGINS: Final = frozenset(
    [
        *("BatchTilePlugin_TRT", "BatchedNMSDynamic_TRT", "BatchedNMS_TRT", "Clip_TRT", "CoordConvAC", "CropAndResize"),
        *("CropAndResizeDynamic", "CustomEmbLayerNormPluginDynamic", "CustomFCPluginDynamic"),
        *("CustomGeluPluginDynamic", "CustomQKVToContextPluginDynamic", "CustomSkipLayerNormPluginDynamic"),
        *("DecodeBbox3DPlugin", "DetectionLayer_TRT", "DisentangledAttention_TRT", "EfficientNMS_Explicit_TF_TRT"),
        *("EfficientNMS_Implicit_TF_TRT", "EfficientNMS_ONNX_TRT", "EfficientNMS_TRT", "FlattenConcat_TRT"),
        *("GenerateDetection_TRT", "GridAnchorRect_TRT", "GridAnchor_TRT", "GroupNormalizationPlugin"),
        *("InstanceNormalization_TRT", "LReLU_TRT", "ModulatedDeformConv2d", "MultilevelCropAndResize_TRT"),
        *("MultilevelProposeROI_TRT", "MultiscaleDeformableAttnPlugin_TRT", "NMSDynamic_TRT", "NMS_TRT"),
        *("Normalize_TRT", "PillarScatterPlugin", "PriorBox_TRT", "Proposal", "ProposalDynamic", "ProposalLayer_TRT"),
        *("PyramidROIAlign_TRT", "ROIAlign_TRT", "RPROI_TRT", "Region_TRT", "Reorg_TRT"),
        *("ResizeNearest_TRT", "SpecialSlice_TRT", "VoxelGeneratorPlugin"),
    ]
)
"""Plugins that TensorRT 10 brings along (NVIDIA/TensorRT: plugin/README.md), but for those named as a standard operator
is."""
