"""Outputs into detections, and pictures into inputs as the published cases have them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from aclserve.errors import FailedPrecondition
from aclserve_client.video_config import VideoConfig
from aclserve_client.video_detect import detect, non_maximum_suppression, prepare

ULTRAFACE = VideoConfig("input", 320, 240, mean=(127.0,), scale=(1 / 128,), decoder="ultraface", labels=("face",))
SQUEEZENET = VideoConfig(
    "data_0", 224, 224, colour="BGR", dtype="float16", fit="crop", resize="area", decoder="classes", scores="y", top=1
)


def overlap(a, b):
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    common = max(wide, 0.0) * max(high, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union else 0.0


def test_of_boxes_that_overlap_the_best_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 9]], np.float32)
    scores = np.array([0.8, 0.9, 0.7, 0.85], np.float32)
    assert non_maximum_suppression(boxes, scores, 0.5) == [1, 2]
    assert non_maximum_suppression(boxes, scores, 0.95) == [1, 3, 0, 2]
    assert non_maximum_suppression(boxes, scores, 0.0) == [1, 2]
    assert non_maximum_suppression(boxes[:0], scores[:0], 0.5) == []


def test_boxes_without_an_area_do_no_harm():
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    assert non_maximum_suppression(boxes, np.array([0.9, 0.8, 0.7]), 0.5) == [0, 1, 2]


CORNERS = hnp.arrays(np.int64, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 8))


@given(CORNERS, st.randoms(use_true_random=False), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_what_stays_and_what_goes(corners, random, iou):
    """Those that stay overlap no other by more; each that goes overlaps a better one that stays."""
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:] + 1], axis=1)
    scores = np.array([random.random() for _ in boxes])
    kept = non_maximum_suppression(boxes, scores, iou)
    assert list(scores[kept]) == sorted(scores[kept], reverse=True)
    for at in kept:
        assert all(overlap(boxes[at], boxes[other]) <= iou for other in kept if other != at)
    for at in set(range(len(boxes))) - set(kept):
        assert any(overlap(boxes[at], boxes[k]) > iou and scores[k] >= scores[at] for k in kept)


def test_faces():
    scores = np.array([[[0.9, 0.1], [0.2, 0.8], [0.05, 0.95], [0.1, 0.9]]], np.float16)
    boxes = np.array([[[0, 0, 1, 1], [0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.7, 0.7], [0.5, 0.5, 1.2, 0.72]]], np.float16)
    found = detect({"scores": scores, "boxes": boxes}, replace(ULTRAFACE, iou=0.25), 640, 480)
    assert [(item.label, round(item.score, 2)) for item in found] == [("face", 0.95), ("face", 0.8)]
    assert found[0].box == pytest.approx((0.5, 0.5, 0.7, 0.7), abs=1e-3)
    assert len(detect({"scores": scores, "boxes": boxes}, replace(ULTRAFACE, iou=0.5, top=2), 1, 1)) == 2
    clipped = detect({"scores": scores, "boxes": boxes}, replace(ULTRAFACE, iou=0.5), 1, 1)[1]
    assert clipped.box == pytest.approx((0.5, 0.5, 1.0, 0.72), abs=1e-3)


def test_boxes_of_a_crop_are_told_in_the_whole_picture():
    outputs = {"scores": np.array([[[0.0, 1.0]]]), "boxes": np.array([[[0.0, 0.0, 1.0, 0.5]]])}
    config = replace(ULTRAFACE, width=100, height=100, fit="crop")
    assert detect(outputs, config, 400, 100)[0].box == (0.375, 0.0, 0.625, 0.5)


def test_classes():
    config = replace(SQUEEZENET, top=2, labels=("a", "b"), softmax=True, threshold=0.0)
    found = detect({"y": np.log(np.array([[[1.0]], [[3.0]], [[6.0]]]))[None]}, config, 1, 1)
    assert [(item.label, round(item.score, 6), item.box) for item in found] == [("2", 0.6, None), ("b", 0.3, None)]
    assert detect({"y": np.array([0.2, 0.1])}, replace(config, softmax=False, threshold=0.5), 1, 1) == ()


def test_outputs_that_do_not_fit_are_told():
    for outputs in ({}, {"scores": np.zeros((1, 3, 2)), "boxes": np.zeros((1, 7))}, {"scores": np.zeros(3), "y": 1}):
        arrays = {name: np.asarray(value) for name, value in outputs.items()}
        with pytest.raises(FailedPrecondition, match="are not those of the decoder ultraface"):
            detect(arrays, ULTRAFACE, 1, 1)
    assert detect({}, replace(ULTRAFACE, decoder="none"), 1, 1) == ()


# The published cases.


def cases(shared, model):
    manifest = json.loads((shared / "data" / "manifest.json").read_text())
    (entry,) = [entry for entry in manifest["models"] if entry["name"] == model]
    for case in entry["cases"]:
        image = np.asarray(Image.open(shared / "data" / case["source"].split(",")[0]).convert("RGB"))
        folder = shared / "data" / "models" / model
        yield case, image, [np.load(folder / entry["file"]) for entry in (*case["inputs"], *case["outputs"])]


@pytest.mark.needs_shared
def test_faces_of_the_published_cases(shared):
    """The prepared picture is the stored input but for the rounding of one level of 255; the boxes are those stated."""
    best = {}
    for case, image, (want, scores, boxes) in cases(shared, "ultraface_rfb_320"):
        got = prepare(image, ULTRAFACE)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert np.abs(got - want).max() <= 1 / 128
        assert np.abs(got - want).mean() < 0.5 / 128
        height, width = image.shape[:2]
        best[case["name"]] = detect({"scores": scores, "boxes": boxes}, ULTRAFACE, width, height)
    assert {name: len(found) for name, found in best.items()} == {"astronaut": 1, "asl_book_0020": 1, "car_0200": 0}
    assert best["astronaut"][0].box == pytest.approx((0.35, 0.12, 0.53, 0.34), abs=0.01)
    assert best["asl_book_0020"][0].score == pytest.approx(0.997, abs=0.001)


@pytest.mark.needs_shared
def test_names_of_the_published_cases(shared):
    labels = (shared / "data" / "models" / "squeezenet_fp16" / "labels.txt").read_text().strip().split("\n")
    tops = {}
    for case, image, (want, probabilities) in cases(shared, "squeezenet_fp16"):
        got = prepare(image, SQUEEZENET)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert np.abs(got.astype(np.float32) - want).mean() < 2, case["name"]
        config = replace(SQUEEZENET, labels=tuple(labels))
        (tops[case["name"]],) = detect({"y": probabilities}, config, image.shape[1], image.shape[0])
    assert {name: round(top.score, 2) for name, top in tops.items()} == {
        "kitten": 0.93,
        "cat": 0.84,
        "dog": 0.97,
        "fish": 0.74,
    }
    assert "tabby" in tops["kitten"].label
    assert "tench" in tops["fish"].label
