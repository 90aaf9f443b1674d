"""What TensorRT's ONNX parser imports: operators, the types that each takes, what it asks of their inputs.

As of TensorRT 10.15, opsets 9 to 24, by the support matrix of ONNX-TensorRT (github.com/onnx/onnx-tensorrt,
docs/operators.md). TensorRT for RTX 1.7 imports the same, `DeformConv` excepted (the tests ask its parser). Types of
quantised tensors aren't among them: those come from `QuantizeLinear` alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from onnx_ir import DataType

#: Opsets within the matrix. From 17 on a LayerNormalization is one node.
OPSETS = range(17, 25)

FLOATS = frozenset({DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16})
NUMBERS = FLOATS | {DataType.INT32, DataType.INT64}
ANY = NUMBERS | {DataType.BOOL}
WITHOUT_BF16 = FLOATS - {DataType.BFLOAT16}

_TRIGONOMETRY = "Acos Acosh Asin Asinh Atan Atanh Cos Cosh Sin Sinh Tan Tanh"
_ACTIVATIONS = (
    "Celu Clip Elu Erf Exp HardSigmoid HardSwish Hardmax LeakyRelu Log LogSoftmax PRelu Reciprocal Selu Sigmoid "
    "Softmax Softplus Softsign Sqrt ThresholdedRelu"
)
_LAYERS = (
    "Attention AveragePool BatchNormalization Conv ConvTranspose Einsum GRU Gemm GlobalAveragePool GlobalLpPool "
    "GlobalMaxPool GroupNormalization InstanceNormalization LRN LSTM LayerNormalization LpNormalization LpPool MatMul "
    "MaxPool MeanVarianceNormalization RMSNormalization RNN RotaryEmbedding"
)
_OTHER_FLOATS = (
    "Ceil CumSum Dropout Floor IsInf QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike "
    "Resize Round Scan Upsample"
)
_ARITHMETIC = (
    "Abs Add ArgMax ArgMin Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod Mul Neg Pow "
    "Range Relu Shrink Sign Sub Sum TopK"
)
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
_PLACES = "DepthToSpace Pad Scatter ScatterElements ScatterND SpaceToDepth TensorScatter"
_MOVES = (
    "Cast CastLike Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If "
    "Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where"
)
_WITHOUT_BF16 = "BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign"

#: Operator -> types that its first input, or what it makes, may have.
OPERATORS: Mapping[str, frozenset[DataType]] = {
    name: types
    for types, names in (
        (FLOATS, " ".join((_TRIGONOMETRY, _ACTIVATIONS, _LAYERS, _OTHER_FLOATS))),
        (NUMBERS, " ".join((_ARITHMETIC, _REDUCTIONS, _PLACES))),
        (ANY, _MOVES),
        (frozenset({DataType.BOOL}), "And Not Or Xor"),
        (WITHOUT_BF16, _WITHOUT_BF16),
        (frozenset({DataType.FLOAT}), "STFT"),
        (frozenset({DataType.INT8, DataType.FLOAT8E4M3FN, DataType.INT4, DataType.FLOAT4E2M1}), "DequantizeLinear"),
    )
    for name in names.split()
}

#: Operator -> inputs that have to be constants.
CONSTANT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "CumSum": (1,),
    "OneHot": (1,),
    "STFT": (1, 2),
    **dict.fromkeys(["Squeeze", "Unsqueeze", *_REDUCTIONS.split()], (1,)),
}

#: Operator -> inputs that decide the shape of what it makes.
SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "Resize": (2, 3),
    **dict.fromkeys(["Expand", "Pad", "Reshape", "Split", "Tile", "TopK", "Upsample"], (1,)),
}

#: Make as many items as values decide, which no profile can bound.
DATA_DEPENDENT = frozenset({"NonMaxSuppression", "NonZero"})

#: Operator -> the only value that an attribute may have.
ATTRIBUTES: Mapping[str, Mapping[str, int | str]] = {
    "LSTM": {"input_forget": 0, "layout": 0},
    "Resize": {"antialias": 0},
    "ScatterND": {"reduction": "none"},
    "TopK": {"sorted": 1},
}

#: Of these the first output alone is made.
ONE_OUTPUT = frozenset({"LayerNormalization", "MaxPool"})

#: Sum or exponentiate: in fp16 they overflow, in bf16 they lose their digits (github.com/NVIDIA/TensorRT issues 2564,
#: 2781, 3101, 4493).
IN_FP32 = frozenset(
    itertools.chain(
        ["Exp", "LayerNormalization", "Log", "LogSoftmax", "Pow", "RMSNormalization", "Reciprocal", "Softmax", "Sqrt"],
        ["BatchNormalization", "GroupNormalization", "InstanceNormalization", "CumSum", *_REDUCTIONS.split()],
    )
)
