"""The contract itself: names, shapes and wiring that every floor above relies on."""

from __future__ import annotations

import itertools
import json
import pickle
import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmt_pipeline.buckets import (
    AUDIO_FRAMES,
    AUDIO_SAMPLES,
    AUDIO_SECONDS,
    CONV_KERNELS,
    CONV_STRIDES,
    SAMPLE_RATE_HZ,
    TEXT_TOKENS,
    bucket_for,
    frames_of,
)
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.labels import LABEL_SETS, labels_of
from cmt_pipeline.modality import MODALITIES, SUBSETS, ordered
from cmt_pipeline.pipelines import ENTRANCES, PIPELINES, Pipeline, Step, pipeline_name
from cmt_pipeline.presets import EncoderPreset, preset_of, with_encoders
from cmt_pipeline.registry import Registry
from cmt_pipeline.release_info import ReleaseStamp
from cmt_pipeline.stages import FUSE, STAGES
from cmt_pipeline.tensors import Axis, TensorSpec

all_pipelines = pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
SPECS = {spec.name: spec for stage in STAGES.values() for spec in (*stage.inputs, *stage.outputs)}


def fits(made: TensorSpec, taken: TensorSpec) -> bool:
    """Whether a stage that takes `taken` takes whatever `made` describes."""
    return made.dtype == taken.dtype and all(
        not t.sizes or set(m.sizes) <= set(t.sizes) for m, t in zip(made.axes, taken.axes, strict=True)
    )


def stages_of(pipeline: Pipeline) -> list[str]:
    return [step.stage.name for step in pipeline.steps]


def test_the_fourteen_names() -> None:
    subsets = ["", "_image_audio", "_image_text", "_audio_text", "_image", "_audio", "_text"]
    assert list(PIPELINES) == [f"emotion{s}{end}" for end in ("", "_tensors") for s in subsets]


@all_pipelines
def test_every_tensor_has_one_producer_and_a_consumer(pipeline: Pipeline) -> None:
    """Steps stand in the order in which they can run: whatever a step takes is there, and fits."""
    made = {spec.name: spec for spec in pipeline.inputs}
    taken: set[str] = set()
    for step in pipeline.steps:
        inputs = {spec.name: spec for spec in step.stage.inputs}
        outputs = {spec.name: spec for spec in step.stage.outputs}
        assert step.inputs.keys() <= inputs.keys()
        assert step.inputs.keys() == inputs.keys() or not step.stage.compiled
        for name, source in step.inputs.items():
            assert fits(made[source], inputs[name]), f"{step.stage.name} takes {name} from {source}"
        assert not made.keys() & set(step.outputs.values())
        made |= {target: outputs[name] for name, target in step.outputs.items()}
        taken |= set(step.inputs.values())
    assert [made[spec.name] for spec in pipeline.outputs] == list(pipeline.outputs)
    assert made.keys() - taken == {spec.name for spec in pipeline.outputs}


@all_pipelines
def test_what_may_refuse_runs_alone_and_first(pipeline: Pipeline) -> None:
    first = "preprocess" if pipeline.entrance == "raw" else "check"
    assert stages_of(pipeline) == [first, *(f"encode_{m}" for m in pipeline.modalities), "fuse"]
    from_first = set(pipeline.steps[0].outputs.values())
    for step in pipeline.steps[1:-1]:
        assert set(step.inputs.values()) <= from_first


@all_pipelines
def test_fuse_gets_stand_ins_for_exactly_the_missing_modalities(pipeline: Pipeline) -> None:
    fuse: Step = pipeline.steps[-1]
    stand_ins = {"features": "absent_features", "mask": "absent_mask"}
    for modality, (kind, stand_in) in itertools.product(MODALITIES, stand_ins.items()):
        name = f"{modality}_{kind}"
        assert fuse.inputs[name] == (name if modality in pipeline.modalities else stand_in)


def test_a_name_means_the_same_tensor_everywhere() -> None:
    """Except that `fuse` also takes the length of a stand-in."""
    made = {spec.name: spec for stage in STAGES.values() if stage is not FUSE for spec in stage.outputs}
    for stage in STAGES.values():
        for spec in stage.inputs:
            source = made.get(spec.name, spec)  # what a client sends, no stage makes
            assert fits(source, spec)
            assert source == spec or stage is FUSE


@given(st.permutations(MODALITIES), st.sampled_from(SUBSETS), st.sampled_from(ENTRANCES))
def test_a_name_knows_its_pipeline(order: list[str], subset: tuple[str, ...], entrance: str) -> None:
    shuffled = [m for m in order if m in subset]
    assert ordered(shuffled * 2) == subset
    pipeline = PIPELINES[pipeline_name(shuffled, entrance)]  # type: ignore[arg-type]
    assert (pipeline.modalities, pipeline.entrance) == (subset, entrance)


@pytest.mark.parametrize(("modalities", "came"), [((), "none"), (("smell", "audio"), "audio, smell"), ("text", "e, t")])
def test_unknown_or_no_modalities_are_refused(modalities: tuple[str, ...], came: str) -> None:
    for refuse in (ordered, pipeline_name):
        with pytest.raises(ValueError, match=f"modalities: got {came}.*expected one or more of image, audio, text"):
            refuse(modalities)


@given(st.integers(400, 400_000))
def test_frames_are_the_windows_one_can_count(samples: int) -> None:
    """A frame starts wherever a whole window of the convolution's kernel fits."""
    length = samples
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES, strict=True):
        length = sum(1 for _ in range(0, length - kernel + 1, stride))
    assert frames_of(samples) == length


@pytest.mark.parametrize("samples", [400, 719, 720, 10_000, *AUDIO_SAMPLES])
def test_frames_are_those_of_the_convolutions(samples: int) -> None:
    sound = torch.zeros(1, 1, samples)
    for kernel, stride in zip(CONV_KERNELS, CONV_STRIDES, strict=True):
        sound = torch.nn.functional.conv1d(sound, torch.zeros(1, 1, kernel), stride=stride)
    assert frames_of(samples) == sound.shape[2]


def test_the_frames_of_the_buckets() -> None:
    assert AUDIO_FRAMES == (56, 80, 104, 152, 200, 304, 400, 600, 800)
    for seconds, frames, samples in zip(AUDIO_SECONDS, AUDIO_FRAMES, AUDIO_SAMPLES, strict=True):
        assert seconds * SAMPLE_RATE_HZ <= samples
        assert frames_of(samples) == frames


@given(st.integers(0, 300_000), st.sampled_from([AUDIO_SAMPLES, TEXT_TOKENS]))
def test_a_bucket_is_the_smallest_that_holds(length: int, buckets: tuple[int, ...]) -> None:
    if length > buckets[-1]:
        with pytest.raises(ValueError, match=f"got length {length}, expected at most {buckets[-1]}"):
            bucket_for(length, buckets)
    else:
        bucket = bucket_for(length, buckets)
        assert bucket in buckets
        assert not [smaller for smaller in buckets if length <= smaller < bucket]
        assert length <= bucket


@given(spec=st.sampled_from(list(SPECS.values())), data=st.data())
def test_arrays_that_fit_a_spec_are_told_from_others(spec: TensorSpec, data: st.DataObject) -> None:
    sizes = [data.draw(st.sampled_from(axis.sizes or (4, 7))) for axis in spec.axes]
    batch = data.draw(st.integers(1, 3))
    good = np.zeros((batch, *sizes), spec.numpy_dtype)
    assert spec.mismatch(good) is None

    expected = f"expected {spec.name} {spec.dtype} [batch, "
    for wrong in (good[:0], good[0], good[..., None], good[(..., slice(0, 0))] if spec.axes[-1].sizes else good[:0]):
        problem = spec.mismatch(wrong)
        assert problem is not None
        assert problem.startswith(f"got shape {list(wrong.shape)}, {expected}")
    problem = spec.mismatch(good.astype(np.float64))
    assert problem is not None
    assert problem.startswith(f"got dtype float64, {expected}")


def test_a_size_between_the_buckets_is_told_with_those_allowed() -> None:
    problem = SPECS["input_ids"].mismatch(np.zeros((1, 17), np.int64))
    assert problem == ("got shape [1, 17], expected input_ids INT64 [batch, tokens] with tokens in [16, 32, 64, 128]")
    assert SPECS["pixel_values"].describe() == "pixel_values FP32 [batch, channels=3, height=224, width=224]"


def test_an_axis_is_fixed_when_it_has_one_size() -> None:
    assert [Axis("a", sizes).dim for sizes in ((), (5,), (5, 6))] == [-1, 5, -1]


names = st.text(string.ascii_lowercase + "_", min_size=1)
hostile = st.text() | st.lists(
    st.sampled_from(["\n", "): ", "(", "invalid_input(a.b): ", "{", '"', "\x00", "é", "🙂"])
).map("".join)


@given(field=names, code=names, message=hostile, before=st.sampled_from(["", "in ensemble 'emotion', ", "[400] "]))
def test_a_refusal_crosses_the_wire_whole(field: str, code: str, message: str, before: str) -> None:
    """Servers put words of their own before it."""
    error = InvalidInput(field, code, message)
    came = InvalidInput.from_wire(before + error.to_wire())
    assert came is not None
    assert (came.field, came.code, came.message) == (field, code, message)
    assert str(came) == f"{field}: {message}"


def test_other_errors_are_no_refusals() -> None:
    for text in ("", "Request for unknown model", "invalid_input: image", "invalid_input(image): x", "invalid_input("):
        assert InvalidInput.from_wire(text) is None


def test_a_refusal_survives_pickling() -> None:
    """It comes out of worker processes."""
    came = pickle.loads(pickle.dumps(InvalidInput("audio", "too_long", "got 20 s")))
    assert (came.field, came.code, came.message) == ("audio", "too_long", "got 20 s")


stamps = st.builds(
    ReleaseStamp,
    release=st.integers(1, 10**6),
    label_set=st.text(),
    labels=st.lists(st.text(), min_size=1).map(tuple),
    preset=st.text(),
    engine=st.text(),
    precision=st.text(),
    trained=st.booleans(),
    digest=st.text(),
)


@given(stamps, st.dictionaries(names, st.text()))
def test_a_release_is_read_back_from_an_answer_and_from_parameters(stamp: ReleaseStamp, others: dict[str, str]) -> None:
    assert ReleaseStamp.from_json(stamp.to_json().encode()) == stamp
    assert ReleaseStamp.from_parameters({**others, "release": stamp.to_json()}) == stamp
    assert ReleaseStamp.from_parameters({key: text for key, text in others.items() if key != "release"}) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"release": 3}', '{"labels": 5}'])
def test_what_is_no_release_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"got|Expecting"):
        ReleaseStamp.from_json(text)


@pytest.mark.parametrize("changes", [{"release": "3"}, {"trained": 1}, {"digest": None}, {"more": "x"}, {"labels": 3}])
def test_a_release_with_other_fields_is_refused(changes: dict[str, object]) -> None:
    stamp = ReleaseStamp(3, "meld", ("joy", "anger"), "mini", "openvino", "fp32", trained=False, digest="ab")
    with pytest.raises(ValueError, match="got a release with other fields"):
        ReleaseStamp.from_json(json.dumps({**json.loads(stamp.to_json()), **changes}))


def test_label_sets_and_presets_are_known_by_name() -> None:
    for name, labels in LABEL_SETS.items():
        assert labels_of(name) == labels
        assert len(set(labels)) == len(labels)
    with pytest.raises(ValueError, match="label set: got 'melt'; expected one of meld, iemocap4"):
        labels_of("melt")
    assert labels_of("calm, angry,very sad") == ("calm", "angry", "very sad")
    for wrong in ("calm,", "calm,calm", "calm,an/gry", "calm,sad\nder", ","):
        with pytest.raises(ValueError, match="expected two or more different names"):
            labels_of(wrong)
    with pytest.raises(ValueError, match="preset: got 'huge'; expected one of base, fast, mini"):
        preset_of("huge")


def test_a_preset_takes_other_published_encoders() -> None:
    name = with_encoders("base", {"image": "models/a,b", "audio": None, "text": "own/bert@1"})
    made, base = preset_of(name), preset_of("base")
    assert made.encoders["image"] == EncoderPreset(pretrained="models/a,b")
    assert made.encoders["text"] == EncoderPreset(pretrained="own/bert@1")
    assert (made.encoders["audio"], made.fusion, made.name) == (base.encoders["audio"], base.fusion, "base-own")
    assert preset_of(with_encoders("base", {"image": None})) == base


def test_a_registry_is_a_mapping_of_what_it_knows() -> None:
    known: Registry[int] = Registry("number", "nobody.offers.any", int, {"one": 1, "maximum": "sys:maxunicode"})
    assert (tuple(known), len(known), "one" in known, "two" in known) == (("one", "maximum"), 2, True, False)
    assert dict(known) == {"one": 1, "maximum": 0x10FFFF}
