"""Face detection in a real photograph, in many real faces when the archive is given, and with YuNet."""

import contextlib
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from photographs import EYES, group, landscape, portrait

from fer_lightning.data.faces import ImageForm
from fer_lightning.data.images import as_face
from fer_lightning.inference import detect
from fer_lightning.inference.detect import Box, crop_face, find_faces
from fer_lightning.runtime.errors import UserError


def holds(box: Box, point: tuple[float, float]) -> bool:
    return box.x <= point[0] < box.x + box.width and box.y <= point[1] < box.y + box.height


class TestHaar:
    def test_the_one_face_of_a_portrait(self):
        (box,) = find_faces(portrait())
        assert all(holds(box, eye) for eye in EYES)
        assert 150 < box.width < 300

    def test_gray_is_as_good(self):
        image = portrait()
        assert find_faces(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)) == find_faces(image)

    def test_from_left_to_right(self):
        small, large = 256, 512
        boxes = find_faces(group(small, large))
        assert len(boxes) == 2
        assert boxes[0].width < boxes[1].width
        assert boxes[0].x + boxes[0].width < small < boxes[1].x

    @pytest.mark.parametrize(
        "image",
        [landscape(), np.zeros((1, 1), np.uint8), np.zeros((3, 500, 3), np.uint8), np.full((19, 19), 7, np.uint8)],
        ids=["landscape", "one pixel", "a line", "smaller than any face"],
    )
    def test_nothing_to_find(self, image):
        assert find_faces(image) == []

    def test_opencv_without_cascades_is_reported(self, monkeypatch, tmp_path):
        monkeypatch.setattr(cv2.data, "haarcascades", str(tmp_path))
        detect._haar.cache_clear()
        with pytest.raises(UserError, match=r"has no Haar cascades.*pip install 'opencv-python-headless<5'"):
            detect.check_detector()

    def test_opencv_5_is_reported(self, monkeypatch):
        monkeypatch.delattr(cv2, "CascadeClassifier")
        monkeypatch.delattr(cv2, "data")
        detect._haar.cache_clear()
        with pytest.raises(UserError, match=r"pip install 'opencv-python-headless<5', or give YuNet"):
            detect.check_detector()

    @pytest.mark.slow
    @pytest.mark.real
    def test_most_faces_of_fer2013_in_a_larger_picture(self, real_archive):
        """Detected boxes have FER-2013's framing, which came from a similar detector (Goodfellow et al. 2013)."""
        rng = np.random.default_rng(0)
        with zipfile.ZipFile(real_archive) as archive:
            names = sorted(name for name in archive.namelist() if "PrivateTest" in name)
            names = [names[k] for k in rng.choice(len(names), 100, replace=False)]
            faces = [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), 0) for name in names]
        sizes = []
        for face in faces:
            wall, side = np.full((240, 320), 110, np.uint8), 130
            x, y = int(rng.integers(0, 320 - side)), int(rng.integers(0, 240 - side))
            wall[y : y + side, x : x + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
            found = [box for box in find_faces(wall) if box.width > side / 2]
            sizes += [len(crop_face(wall, box)) / side for box in found[:1] if holds(box, (x + side / 2, y + side / 2))]
        assert len(sizes) >= 60
        assert 0.95 < np.median(sizes) < 1.05


class TestCrop:
    def test_a_square_with_a_margin_around_the_middle(self):
        image = np.zeros((200, 200), np.uint8)
        image[70:130, 80:120] = 255
        crop = crop_face(image, Box(80, 70, 40, 60))
        side = round(60 * (1 + 2 * detect.MARGIN))
        assert crop.shape == (side, side)
        assert crop.sum() == image.sum()
        rows, columns = np.nonzero(crop)
        assert abs((rows.min() + rows.max()) - (side - 1)) <= 1
        assert abs((columns.min() + columns.max()) - (side - 1)) <= 1

    def test_outside_the_picture_the_edge_is_repeated(self):
        image = np.zeros((50, 50, 3), np.uint8)
        image[:, 0] = 200
        crop = crop_face(image, Box(0, 5, 20, 40))
        assert crop.shape[0] == crop.shape[1] == round(40 * (1 + 2 * detect.MARGIN))
        assert (crop[:, :5] == 200).all()
        assert as_face(crop, ImageForm()).shape == (48, 48)


STRIDES = (8, 16, 32)


@pytest.fixture(scope="module")
def yunet(tmp_path_factory) -> Path:
    """A network with YuNet's inputs and outputs that reports every white cell of 32 pixels as a face of 32 pixels.

    The real file is not shipped here. OpenCV reads, runs and decodes this one in the same way.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    blue = helper.make_node("Slice", ["input", "zero", "one", "axis"], ["blue"])
    nodes, outputs = [blue], []
    for stride in STRIDES:
        pooled, flat, rows = f"pool_{stride}", f"flat_{stride}", f"rows_{stride}"
        nodes.append(
            helper.make_node("AveragePool", ["blue"], [pooled], kernel_shape=[stride] * 2, strides=[stride] * 2)
        )
        nodes.append(helper.make_node("Reshape", [pooled, "column"], [flat]))
        nodes.append(helper.make_node("Mul", [flat, "sure" if stride == 32 else "never"], [rows]))
        for name, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            out = f"{name}_{stride}"
            if width == 1:
                nodes.append(helper.make_node("Identity", [rows], [out]))
            else:
                nodes.append(helper.make_node("Mul", [flat, f"none_{width}"], [out]))
            outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, None, width]))
    outputs.sort(key=lambda output: ("cls", "obj", "bbox", "kps").index(output.name.split("_")[0]))
    weights = [
        helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("column", TensorProto.INT64, [3], [1, -1, 1]),
        helper.make_tensor("sure", TensorProto.FLOAT, [1], [1 / 255]),
        helper.make_tensor("never", TensorProto.FLOAT, [1], [0.0]),
        helper.make_tensor("none_4", TensorProto.FLOAT, [1, 1, 4], [0.0] * 4),
        helper.make_tensor("none_10", TensorProto.FLOAT, [1, 1, 10], [0.0] * 10),
    ]
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "stand_in", [picture], outputs, weights)
    path = tmp_path_factory.mktemp("yunet") / "face_detection_stand_in.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def save_small_network(path: Path, scale: float, side: int, enlarged: int = 1) -> None:
    """A network with the names of YuNet's outputs, of which each has 3 x ``side`` x ``side`` numbers.

    Its input is enlarged so many times.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    names = [f"{name}_{stride}" for stride in STRIDES for name in ("cls", "obj", "bbox", "kps")]
    nodes = [
        helper.make_node("Resize", ["input", "", "factors"], ["large"], mode="nearest"),
        helper.make_node("GlobalAveragePool", ["large"], ["mean"]),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        *(helper.make_node("Identity", ["scaled"], [name]) for name in names),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 1, 1]) for name in names]
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    weights = [
        helper.make_tensor("scale", TensorProto.FLOAT, [1, 1, side, side], [scale] * side**2),
        helper.make_tensor("factors", TensorProto.FLOAT, [4], [1, 1, enlarged, enlarged]),
    ]
    graph = helper.make_graph(nodes, "small", [picture], ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


class TestYunet:
    def test_box_in_the_pictures_own_pixels(self, yunet):
        image = np.zeros((320, 320, 3), np.uint8)
        image[96:128, 160:192] = 255
        (box,) = find_faces(image, yunet)
        # YuNet counts from a cell's corner.
        assert box == Box(160 - 16, 96 - 16, 32, 32)

    def test_gray(self, yunet):
        image = np.zeros((320, 320), np.uint8)
        image[96:128, 160:192] = 255
        assert len(find_faces(image, yunet)) == 1

    def test_large_pictures_are_shrunk_and_boxes_grown_again(self, yunet):
        image = np.zeros((960, 1280, 3), np.uint8)
        image[192:256, 320:384] = 255
        (box,) = find_faces(image, yunet)
        assert box == Box(320 - 32, 192 - 32, 64, 64)

    def test_boxes_end_with_the_picture(self, yunet):
        image = np.zeros((320, 320, 3), np.uint8)
        image[:32, :32] = 255
        (box,) = find_faces(image, yunet)
        assert box == Box(0, 0, 16, 16)

    def test_pictures_of_many_sizes_one_after_the_other(self, yunet):
        for side in (64, 320, 100, 640):
            image = np.zeros((side, side, 3), np.uint8)
            image[32:64, 32:64] = 255
            assert find_faces(image, yunet) == [Box(16, 16, 32, 32)]

    def test_nothing_to_find(self, yunet):
        assert find_faces(np.zeros((100, 200, 3), np.uint8), yunet) == []

    def test_missing_file_is_reported(self, tmp_path):
        with pytest.raises(UserError, match=r"gone\.onnx: no such file; give YuNet"):
            find_faces(portrait(), tmp_path / "gone.onnx")

    @pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x08" + bytes(100)])
    def test_other_files_are_reported(self, tmp_path, content):
        path = tmp_path / "other.onnx"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"other\.onnx: is not YuNet") as caught:
            detect.check_detector(path)
        assert "\n" not in str(caught.value)

    def test_another_network_is_reported(self, tmp_path):
        onnx = pytest.importorskip("onnx")
        from onnx import TensorProto, helper

        node = helper.make_node("Relu", ["input"], ["output"])
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 64, 64]) for name in ("input", "output")]
        graph = helper.make_graph([node], "other", [ends[0]], [ends[1]])
        path = tmp_path / "other.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
        with pytest.raises(UserError, match=r"other\.onnx: is not YuNet"):
            detect.check_detector(path)

    @pytest.mark.parametrize("side", [1, 2])
    def test_outputs_of_another_size_are_reported(self, tmp_path, side):
        """OpenCV's detector reads beyond the end of outputs that are too small."""
        path = tmp_path / "other.onnx"
        save_small_network(path, 0.004, side)
        with pytest.raises(UserError, match=r"other\.onnx: is not YuNet"):
            find_faces(np.full((320, 320, 3), 200, np.uint8), path)

    def test_a_file_that_ends_the_process_is_reported(self, tmp_path, monkeypatch):
        monkeypatch.setattr(detect, "_TRY", "import os; os.abort()")
        path = tmp_path / "crash.onnx"
        path.write_bytes(b"any")
        with pytest.raises(UserError, match=r"crash\.onnx: is not YuNet"):
            detect.check_detector(path)

    def test_a_file_that_takes_memory_is_reported(self, tmp_path, monkeypatch):
        path = tmp_path / "large.onnx"
        save_small_network(path, 1.0, 1, enlarged=12)
        detect._try_yunet(path)
        monkeypatch.setattr(detect, "YUNET_MEMORY", 2**29)
        with pytest.raises(UserError, match=r"large\.onnx: is not YuNet"):
            detect._try_yunet(path)

    def test_any_damage_is_a_result_or_one_line(self, tmp_path, yunet):
        content, rng = yunet.read_bytes(), np.random.default_rng(0)
        for number in range(4):
            damaged = bytearray(content)
            damaged[rng.integers(len(content))] = rng.integers(256)
            path = tmp_path / f"damaged_{number}.onnx"
            path.write_bytes(damaged)
            with contextlib.suppress(UserError):
                detect.check_detector(path)

    @pytest.mark.parametrize("far", [np.inf, np.nan, 1e30])
    def test_boxes_that_are_not_finite_are_reported(self, yunet, monkeypatch, far):
        class Detector:
            def setInputSize(self, size: tuple[int, int]) -> None: ...

            def detect(self, image: np.ndarray) -> tuple[int, np.ndarray]:
                return 1, np.array([[0, 0, far, 1, *[0] * 11]], np.float32)

        monkeypatch.setattr(detect, "_yunet", lambda path: Detector())
        with pytest.raises(UserError, match=r"is not YuNet"):
            find_faces(np.zeros((64, 64, 3), np.uint8), yunet)
