"""The `tiny` preset: a whole model of a few thousand weights, for tests that need no trained ones.

It is a preset like the others, but only where this module was imported, so that no user is offered it. Its text
encoder lies in `tiny_text`; `python tests/tiny_model.py` makes it again.
"""

from __future__ import annotations

from pathlib import Path

from cmt_pipeline.presets import PRESETS, EncoderPreset, FusionSize, Preset

TEXT_ENCODER = Path(__file__).parent / "tiny_text"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

#: Without any dropout.
TINY = Preset(
    "tiny",
    {
        "image": EncoderPreset("vit", None, SMALL),
        "audio": EncoderPreset(
            "wav2vec2",
            None,
            {
                **SMALL,
                "conv_dim": (8,) * 7,
                "num_conv_pos_embedding_groups": 4,
                "num_conv_pos_embeddings": 16,
                "hidden_dropout": 0.0,
                "attention_dropout": 0.0,
                "activation_dropout": 0.0,
                "feat_proj_dropout": 0.0,
            },
        ),
        "text": EncoderPreset("bert", str(TEXT_ENCODER)),
    },
    FusionSize(layers=1, heads=2, feed_forward_width=16, dropout=0.0),
)

PRESETS[TINY.name] = TINY


def write_text_encoder(folder: Path) -> None:
    """A BERT of random weights, and a tokenizer that knows the words of the tests' sentences and every letter."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    from cmt_export.samples import SENTENCES
    from small_corpus import WORDS

    sentences = [*SENTENCES, *(sentence for both in WORDS.values() for sentence in both)]
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {w for s in sentences for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(s))}
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *sorted(words)])
    vocabulary = {token: number for number, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    torch.manual_seed(0)
    config = BertConfig(
        **{**SMALL, "num_hidden_layers": 2},
        vocab_size=len(vocabulary),
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    write_text_encoder(TEXT_ENCODER)
