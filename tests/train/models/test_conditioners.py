from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from krl_runtime.conditions import encode
from krl_runtime.errors import UsageError
from krl_train.models.conditioners import (
    AttributeConditioner,
    FixedWords,
    GraphConditioner,
    TextConditioner,
    build_conditioner,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "labels": {"kind": "labels", "length": 1, "dim": 8, "vocabulary": ["a", "b"]},
    "attributes": {"kind": "attributes", "length": 2, "dim": 8, "vocabulary": ["c=", "c=r", "d=", "d=1"]},
    "text": {"kind": "text", "length": 5, "dim": 8, "vocabulary": ["", "a", "red", "seven"]},
    "words": {
        "kind": "text",
        "length": 5,
        "dim": 8,
        "vocabulary": ["", "a", "red", "seven"],
        "vectors": [[0, 0], [1, 0], [0, 1], [1, 1]],
    },
    "graph": {
        "kind": "graph",
        "length": 4,
        "dim": 8,
        "vocabulary": ["", "color", "digit", "red", "seven", "rs"],
        "relations": ["color", "digit"],
        "facts": [["rs", "color", "red"], ["rs", "digit", "seven"]],
    },
}
CONDITIONS: dict[str, list[Any]] = {
    "labels": ["b", "a", "b"],
    "attributes": ["c=r", "d=1,c=r", {}],
    "text": ["a red seven", "red", "a seven"],
    "words": ["a red seven", "red", "a seven"],
    "graph": ["rs", "color=red", "seven"],
}


def tokens_of(kind: str) -> torch.Tensor:
    return torch.from_numpy(encode(CONDITIONS[kind], SETTINGS[kind]))


@pytest.mark.parametrize("kind", SETTINGS)
def test_exported_graph_computes_the_same_for_any_batch(kind: str) -> None:
    import onnxruntime

    conditioner = build_conditioner(SETTINGS[kind]).eval()
    tokens = tokens_of(kind)
    vectors = conditioner(tokens)
    assert vectors.shape == (3, conditioner.dim) == (3, 8)
    assert vectors.dtype == torch.float32
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter uses parts of torch that are to go
        program = torch.onnx.export(
            conditioner, (tokens,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
        assert program is not None
        file.write(program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in (tokens, tokens[1:2], tokens.repeat(4, 1)):
        expected = conditioner(batch).detach().numpy()
        np.testing.assert_allclose(session.run(None, {name: batch.numpy()})[0], expected, atol=1e-5)


def test_attributes_are_summed() -> None:
    conditioner = AttributeConditioner(count=4, length=4, dim=2)
    conditioner.embedding = nn.Embedding.from_pretrained(torch.tensor([[1.0, 0], [0, 1], [4, 4], [-1, 3]]))
    assert conditioner(torch.tensor([[0, 1, 2, 3]])).tolist() == [[2.0, 4.0]]  # (4, 8) / sqrt(4)


def test_facts_are_averaged_as_tail_minus_relation() -> None:
    conditioner = GraphConditioner(count=4, length=4, dim=2)
    with torch.no_grad():
        conditioner.embedding.weight.copy_(torch.tensor([[0.0, 0], [1, 1], [3, 5], [7, 1]]))
    conditioner.out = nn.Identity()  # type: ignore[assignment]
    assert conditioner(torch.tensor([[1, 2, 1, 3]])).tolist() == [[4.0, 2.0]]  # of (2, 4) and (6, 0)
    assert conditioner(torch.tensor([[1, 2, 0, 0]])).tolist() == [[2.0, 4.0]]  # no fact does not count
    assert conditioner(torch.tensor([[0, 3, 0, 0]])).tolist() == [[7.0, 1.0]]  # an entity itself


def test_padding_does_not_change_a_text() -> None:
    torch.manual_seed(0)
    long = TextConditioner(nn.Embedding(5, 8), length=6, dim=8)
    short = TextConditioner(nn.Embedding(5, 8), length=3, dim=8)
    short.load_state_dict({**long.state_dict(), "position": long.position[:3].detach()})
    sentence = torch.tensor([[1, 2, 3]])
    padded = torch.nn.functional.pad(sentence, (0, 3))
    torch.testing.assert_close(long(padded), short(sentence))
    assert not torch.allclose(long(padded), long(torch.tensor([[1, 2, 4, 0, 0, 0]])))


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    conditioner = TextConditioner(nn.Embedding(5, 8), length=4, dim=8)
    reference = nn.MultiheadAttention(8, 1, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": conditioner.query_key_value.weight,
            "in_proj_bias": conditioner.query_key_value.bias,
            "out_proj.weight": conditioner.mix.weight,
            "out_proj.bias": conditioner.mix.bias,
        }
    )
    tokens = torch.tensor([[1, 4, 2, 0], [3, 0, 0, 0]])
    x = conditioner.embedding(tokens) + conditioner.position
    y = conditioner.norm(x)
    x = x + reference(y, y, y, key_padding_mask=tokens == 0, need_weights=False)[0]
    mean = torch.stack([x[0, :3].mean(0), x[1, 0]])
    torch.testing.assert_close(conditioner(tokens), conditioner.out(mean))


def test_given_vectors_stay_while_what_is_made_of_them_is_learned() -> None:
    torch.manual_seed(0)
    conditioner = build_conditioner(SETTINGS["words"])
    words = conditioner.get_submodule("embedding")
    assert isinstance(words, FixedWords)
    before = {name: value.clone() for name, value in conditioner.state_dict().items()}
    with torch.no_grad():
        words.linear.weight.copy_(torch.arange(16.0).reshape(8, 2))
        words.linear.bias.fill_(1)
    assert words(torch.tensor([[1, 3]])).tolist() == [
        [[2 * x + 1.0 for x in range(8)], [4 * x + 2.0 for x in range(8)]]
    ]
    conditioner.load_state_dict(before)
    optimizer = torch.optim.Adam(conditioner.parameters(), lr=0.1)
    conditioner(tokens_of("words")).square().sum().backward()
    optimizer.step()
    after = conditioner.state_dict()
    assert torch.equal(after["embedding.vectors"], before["embedding.vectors"])
    assert not torch.equal(after["embedding.linear.weight"], before["embedding.linear.weight"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"vectors": [[1.0]]}, r"vectors are \[1, 1\]; expected \[4, 1 or more\]"),
        ({"vectors": [[], [], [], []]}, r"vectors are \[4, 0\]"),
        ({"vectors": [[1.0], [1.0], [1.0], [float("nan")]]}, "finite"),
        ({"vectors": [[1.0], [1.0, 2.0], [1.0], [1.0]]}, "are not 4 lists of as many numbers"),
        ({"vectors": "abcd"}, "are not 4 lists of as many numbers"),
    ],
)
def test_damaged_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_conditioner({**SETTINGS["text"], **changed})
