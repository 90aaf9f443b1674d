"""Published emotion classifiers: each as a folder of that configuration, small, with random weights.

What is theirs is the class, the class names and their order, the preprocessing, the form of the weights, and each one's
oddity; what isn't theirs are sizes and weights. Names are the hub's.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from cmt_export.heads import speech_architecture
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import Modality
from cmt_pipeline.synonyms import places
from published import AUDIO, LAYER_NORM, SMALL, SWIN, TEXT, TEXT_ENCODER, VOCABULARY, WIDTH

ROBERTA = {**TEXT, "max_position_embeddings": 200}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": VOCABULARY}
DEBERTA = {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32}
DEBERTA = {**DEBERTA, "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 224, "width": 224}, "resample": 2}
HALF = {**HALF, "do_resize": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255}
PICTURES: Mapping[str, Any] = {"image_processor_type": "ViTImageProcessor", **HALF}
SOUNDS: Mapping[str, Any] = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000}
GO_EMOTIONS = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral"
)
Change = Callable[[Path], None]


@dataclass(frozen=True)
class Row:
    """names: id2label, in order; preprocessor: preprocessor_config.json; weights: `bin` or `safetensors`; changes: what
    else is odd about it; refused: a part of the reason, where it can't be composed."""

    modality: Modality
    architecture: str
    config: Mapping[str, Any]
    names: str
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "safetensors"
    changes: tuple[Change, ...] = ()
    refused: str = ""


def config_changed(**values: Any) -> Change:
    """None takes a key away."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        made = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in made.items() if value is not None}))

    return change


def weights_renamed(names: Mapping[str, str]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        kept = load_file(path)
        for old, new in names.items():
            kept = {name.replace(old, new): tensor for name, tensor in kept.items()}
        save_file(kept, path, {"format": "pt"})

    return change


def only_files(**contents: str) -> Change:
    """Nothing but these files."""

    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name, content in contents.items():
            (folder / name.replace("__", ".")).write_text(content)

    return change


def _numbers(names: str) -> dict[str, str]:
    return {name: str(index) for index, name in enumerate(names.split())}


RAVDESS = "angry calm disgust fearful happy neutral sad surprised"
FER = "angry disgust fear happy neutral sad surprise"
ODYSSEY = "Angry Sad Happy Surprise Fear Disgust Contempt Neutral"
ROWS: dict[str, Row] = {
    "trpakov/vit-face-expression": Row("image", "ViTForImageClassification", SMALL, FER, PICTURES, "bin"),
    "dima806/facial_emotions_image_detection": Row(
        "image", "ViTForImageClassification", SMALL, "sad disgust angry neutral fear surprise happy", PICTURES
    ),
    "motheecreator/vit-Facial-Expression-Recognition": Row(
        "image", "ViTForImageClassification", SMALL, "anger disgust fear happy neutral sad surprise", PICTURES
    ),
    "Celal11/swin-tiny-patch4-window7-224-finetuned-eurosat": Row("image", "SwinForImageClassification", SWIN, FER),
    "Yudsky/image_classification": Row(
        "image",
        "SwinForImageClassification",
        SWIN,
        "anger contempt disgust fear happy neutral sad surprise",
        changes=(config_changed(label2id=_numbers("anger contempt disgust fear happy neutral sad surprise")),),
    ),
    "adhityamw11/facial_emotions_image_detection_rafdb_microsoft_vit": Row(
        "image", "SwinForImageClassification", SWIN, "disguist anger fear happy surprise neutral sad"
    ),
    "SEARO1/FER_model": Row(
        "image",
        "ViTForImageClassification",
        SMALL,
        FER,
        changes=(
            config_changed(model_type="swin-transformer", architectures=None, id2label=None, emotions=FER.split()),
        ),
        refused="names the family 'swin-transformer'",
    ),
    "lixiqi/beit-base-patch16-224-pt22k-ft22k-finetuned-FER2013": Row(
        "image",
        "BeitForImageClassification",
        SMALL,
        FER,
        {**PICTURES, "image_processor_type": "BeitImageProcessor"},
        "bin",
    ),
    "HSEmotion enet_b0_8_best_vgaf": Row(
        "image",
        "ViTForImageClassification",
        SMALL,
        FER,
        changes=(only_files(enet_b0_8_best_vgaf__pt="a pickle"),),
        refused="a pickle of code",
    ),
    "superb/wav2vec2-base-superb-er": Row(
        "audio",
        "Wav2Vec2ForSequenceClassification",
        {**AUDIO, "use_weighted_layer_sum": True},
        "neu hap ang sad",
        {**SOUNDS, "do_normalize": False},
        "bin",
    ),
    "superb/hubert-base-superb-er": Row(
        "audio",
        "HubertForSequenceClassification",
        {**AUDIO, "use_weighted_layer_sum": True},
        "neu hap ang sad",
        {**SOUNDS, "do_normalize": False},
        "bin",
    ),
    "superb/hubert-large-superb-er": Row(
        "audio",
        "HubertForSequenceClassification",
        {**LAYER_NORM, "use_weighted_layer_sum": True},
        "neu hap ang sad",
        {**SOUNDS, "do_normalize": True},
        "bin",
    ),
    "ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition": Row(
        "audio",
        "Wav2Vec2ForSequenceClassification",
        LAYER_NORM,
        RAVDESS,
        {**SOUNDS, "do_normalize": True},
        changes=(
            weights_renamed(
                {
                    "projector.": "classifier.dense.",
                    "classifier.weight": "classifier.output.weight",
                    "classifier.bias": "classifier.output.bias",
                }
            ),
        ),
        refused="lack 4 tensors of Wav2Vec2ForSequenceClassification, such as classifier.bias",
    ),
    "harshit345/xlsr-wav2vec-speech-emotion-recognition": Row(
        "audio",
        "Wav2Vec2ForSpeechClassification",
        {**LAYER_NORM, "pooling_mode": "mean"},
        "anger disgust fear happiness sadness",
        {**SOUNDS, "do_normalize": True},
        "bin",
    ),
    "r-f/wav2vec-english-speech-emotion-recognition": Row(
        "audio",
        "Wav2Vec2ForCTC",
        LAYER_NORM,
        "angry disgust fear happy neutral sad surprise",
        refused="'Wav2Vec2ForCTC', whose head isn't known",
    ),
    "Dpngtm/wav2vec2-emotion-recognition": Row(
        "audio",
        "Wav2Vec2ForSequenceClassification",
        AUDIO,
        " ".join(f"LABEL_{number}" for number in range(7)),
        {**SOUNDS, "do_normalize": True},
        refused="LABEL_6, which says nothing; name them in the order of its outputs: `--names",
    ),
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": Row(
        "audio",
        "Wav2Vec2ForSpeechClassification",
        {**LAYER_NORM, "problem_type": "regression"},
        "arousal dominance valence",
        {**SOUNDS, "do_normalize": True},
    ),
    "3loi/SER-Odyssey-Baseline-WavLM-Categorical": Row(
        "audio",
        "WavLMForSequenceClassification",
        LAYER_NORM,
        ODYSSEY,
        changes=(config_changed(auto_map={"AutoModelForAudioClassification": "pipeline_utils.SERModel"}),),
        refused="nothing from elsewhere is executed here",
    ),
    "firdhokk/speech-emotion-recognition-with-openai-whisper-large-v3": Row(
        "audio",
        "WhisperForAudioClassification",
        {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "num_mel_bins": 128},
        "Angry Disgust Fearful Happy Neutral Sad Surprised",
        refused="'WhisperForAudioClassification', whose head isn't known",
    ),
    "DunnBC22/wav2vec2-base-Speech_Emotion_Recognition": Row(
        "audio",
        "Wav2Vec2ForSequenceClassification",
        AUDIO,
        "SAD ANGRY DISGUST FEAR HAPPY NEUTRAL",
        {**SOUNDS, "do_normalize": True},
    ),
    "emotion2vec/emotion2vec_plus_large": Row(
        "audio",
        "Wav2Vec2ForSequenceClassification",
        AUDIO,
        RAVDESS,
        changes=(only_files(configuration__json="{}", model__pt="a pickle"),),
        refused="files of FunASR's or ModelScope's format",
    ),
    "speechbrain/emotion-recognition-wav2vec2-IEMOCAP": Row(
        "audio",
        "Wav2Vec2ForSequenceClassification",
        AUDIO,
        "neu ang hap sad",
        changes=(only_files(hyperparams__yaml="pretrainer: {}", model__ckpt="a pickle"),),
        refused="files of SpeechBrain's format",
    ),
    "j-hartmann/emotion-english-distilroberta-base": Row(
        "text",
        "RobertaForSequenceClassification",
        ROBERTA,
        "anger disgust fear joy neutral sadness surprise",
        {},
        "bin",
    ),
    "bhadresh-savani/distilbert-base-uncased-emotion": Row(
        "text", "DistilBertForSequenceClassification", DISTILBERT, "sadness joy love anger fear surprise", {}, "bin"
    ),
    "bhadresh-savani/bert-base-uncased-emotion": Row(
        "text", "BertForSequenceClassification", TEXT, "sadness joy love anger fear surprise"
    ),
    "SamLowe/roberta-base-go_emotions": Row(
        "text",
        "RobertaForSequenceClassification",
        {**ROBERTA, "problem_type": "multi_label_classification"},
        GO_EMOTIONS,
    ),
    "cardiffnlp/twitter-roberta-base-emotion": Row(
        "text", "RobertaForSequenceClassification", ROBERTA, "joy optimism anger sadness", {}, "bin"
    ),
    "boltuix/bert-emotion": Row(
        "text",
        "BertForSequenceClassification",
        TEXT,
        "sadness anger love surprise fear happiness neutral disgust shame guilt confusion desire sarcasm",
    ),
    "MilaNLProc/xlm-emo-t": Row(
        "text",
        "XLMRobertaForSequenceClassification",
        ROBERTA,
        "anger fear joy sadness",
        {},
        "bin",
        changes=(config_changed(label2id={f"LABEL_{number}": number for number in range(4)}),),
    ),
    "Emanuel/twitter-emotion-deberta-v3-base": Row(
        "text", "DebertaV2ForSequenceClassification", DEBERTA, "sadness joy love anger fear surprise", {}, "bin"
    ),
    "id2label and label2id that disagree": Row(
        "text",
        "BertForSequenceClassification",
        TEXT,
        "sadness joy",
        changes=(config_changed(label2id={"joy": 0, "sadness": 1}),),
        refused="disagrees with itself: id2label is sadness, joy; label2id has 'joy' at 0",
    ),
    "hf_anger": Row("text", "BertForSequenceClassification", TEXT, "hf_anger hf_joy hf_sadness"),
    "BertForMultiLabelClassification": Row(
        "text",
        "BertForSequenceClassification",
        TEXT,
        GO_EMOTIONS,
        changes=(config_changed(architectures=["BertForMultiLabelClassification"]),),
    ),
}


def transformers_class(architecture: str) -> Any:
    if "ForSpeechClassification" in architecture:
        return speech_architecture(architecture)
    return getattr(transformers, architecture)


def made(row: Row, folder: Path, seed: int = 0) -> Path:
    """The folder of a row; its model's weights are wide enough that answers differ."""
    kind = transformers_class(row.architecture)
    names = dict(enumerate(row.names.split()))
    label2id = {name: number for number, name in names.items()}
    config = kind.config_class(**row.config, id2label=names, label2id=label2id)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            parameter.add_(WIDTH * torch.randn_like(parameter))
    model.config.architectures = [row.architecture]
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    config_changed(architectures=[row.architecture])(folder)
    if row.weights == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    if row.preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(dict(row.preprocessor)))
    if row.modality == "text":
        shutil.copyfile(TEXT_ENCODER / "tokenizer.json", folder / "tokenizer.json")
    for change in row.changes:
        change(folder)
    return folder


def theirs(folder: Path) -> Any:
    """The model as transformers itself loads it."""
    config = json.loads((folder / "config.json").read_text())
    architecture = config["architectures"][0].replace("MultiLabel", "Sequence")
    return transformers_class(architecture).from_pretrained(folder).eval()


def logits_of(folder: Path, modality: Modality, ready: Mapping[str, Any]) -> torch.Tensor:
    """Transformers' own logits of one item's ready tensors, without padding: [classes]."""
    model = theirs(folder)
    tensors = {name: torch.from_numpy(array) for name, array in ready.items()}
    with torch.inference_mode():
        if modality == "image":
            return model(tensors["pixel_values"]).logits[0]
        if modality == "audio":
            return _heard(model, tensors["input_values"][:, : int(tensors["num_samples"][0, 0])])
        real = int(tensors["attention_mask"].sum())
        ids, mask = tensors["input_ids"][:, :real], tensors["attention_mask"][:, :real]
        return model(ids, attention_mask=mask).logits[0]


def _heard(model: Any, sound: torch.Tensor) -> torch.Tensor:
    if hasattr(model.classifier, "keys"):  # of no class of transformers: its authors' forward is this
        states = model.base_model(sound).last_hidden_state.mean(dim=1)
        return model.classifier["out_proj"](torch.tanh(model.classifier["dense"](states)))[0]
    config = model.config
    if config.use_weighted_layer_sum and config.do_stable_layer_norm:  # whose last state transformers 5 doesn't norm
        states = list(model.base_model(sound, output_hidden_states=True).hidden_states)
        states[-1] = model.base_model.encoder.layer_norm(states[-1])
        summed = torch.stack(states, dim=-1) @ torch.softmax(model.layer_weights, dim=-1)
        return model.classifier(model.projector(summed).mean(dim=1))[0]
    return model(sound).logits[0]


MARK = "<!-- published -->"
PAGE = Path(__file__).parents[1] / "docs" / "own-model.md"


def table() -> str:
    """Every row, for the page: what its classes mean among MELD's labels, or why it is refused."""
    lines = ["| published | head | what comes of it |", "| --- | --- | --- |"]
    lines += [f"| {name} | `{row.architecture}` | {_outcome(row)} |" for name, row in ROWS.items()]
    return "\n".join(lines)


def _outcome(row: Row) -> str:
    if row.refused:
        return f"refused: {row.refused}"
    names = row.names.split()
    if "arousal" in names:
        return "valence and arousal"
    meant = places(names, labels_of("meld"))
    unknown = [label for label in labels_of("meld") if label not in meant.values()]
    without = [name for name, label in meant.items() if label is None]
    told = f"{len(names) - len(without)} of {len(names)} classes have a place"
    if 0 < len(without) <= 6:
        told += f" (not {', '.join(without)})"
    return told + (f"; says nothing of {', '.join(unknown)}" if unknown else "")


if __name__ == "__main__":  # PYTHONPATH=tests python -m published_classifiers
    before, after = PAGE.read_text().split(MARK)[0], PAGE.read_text().split("\n## Your own checkpoint")[1]
    PAGE.write_text(f"{before}{MARK}\n\n{table()}\n\n## Your own checkpoint{after}")
    sys.stdout.write(table() + "\n")
