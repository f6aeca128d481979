"""Files of weights that do not fit the network, cannot be read, or would do harm."""

import bz2
import struct
import tarfile
import zipfile
from unittest.mock import Mock

import pytest
import timm
import torch
from command_line import TINY, assert_refused
from trap import Trap

from fer_lightning.model import archive_check
from fer_lightning.model.network import build_network
from fer_lightning.runtime.errors import UserError


class TestWeights:
    def test_of_another_architecture(self, cli, tmp_path):
        file = tmp_path / "other.pth"
        torch.save(timm.create_model("test_resnet").state_dict(), file)
        outcome = cli(*TINY, f"model.weights={file}")
        assert_refused(outcome, tmp_path, "other.pth: lacks", "tensors of test_efficientnet, such as")

    def test_of_another_width(self, cli, tmp_path):
        state = timm.create_model("test_efficientnet").state_dict()
        state["conv_stem.weight"] = state["conv_stem.weight"][:8]
        torch.save(state, tmp_path / "other.pth")
        outcome = cli(*TINY, f"model.weights={tmp_path / 'other.pth'}")
        assert_refused(outcome, tmp_path, "other.pth", "conv_stem.weight", "[8, ", "[24, ")

    def test_that_are_no_weights(self, cli, tmp_path):
        file = tmp_path / "weights.pth"
        file.write_text("hello")
        assert_refused(cli(*TINY, f"model.weights={file}"), tmp_path, "weights.pth: cannot be read as weights")

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [("packed", "is compressed, which no checkpoint is"), ("expanded", "cannot be read as weights")],
    )
    def test_that_would_fill_the_memory(self, kind, reason, tmp_path):
        state, file = timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth"
        if kind == "expanded":  # a few bytes stand for all values
            state["conv_stem.weight"] = torch.zeros(1).expand(10**6, 3, 3, 3)
        torch.save(state, file)
        if kind == "packed":
            with zipfile.ZipFile(file) as source, zipfile.ZipFile(tmp_path / "b", "w", zipfile.ZIP_DEFLATED) as packed:
                for name in source.namelist():
                    packed.writestr(name, source.read(name))
            (tmp_path / "b").replace(file)
        with pytest.raises(UserError, match=rf"model\.weights=\S+weights\.pth:? {reason}"):
            build_network("test_efficientnet", str(file), 1, 48, None, 0.0, {}, 7)

    def test_in_torchs_old_format(self, tmp_path):
        state, file = timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth"
        torch.save(state, file, _use_new_zipfile_serialization=False)
        head = {"hidden": [], "activation": "ReLU", "batch_norm": False, "dropout": 0.0}
        network = build_network("test_efficientnet", str(file), 1, 48, None, 0.0, head, 7)
        assert torch.equal(network.state_dict()["bn1.weight"], state["bn1.weight"])
        with tarfile.open(tmp_path / "tar.pth", "w") as archive:
            archive.add(file, "pickle")
        array = b"\x80\x02c__builtin__\nbytearray\nJ" + struct.pack("<i", 1_900_000_000) + b"\x85R."
        (tmp_path / "array.pth").write_bytes(array)
        (tmp_path / "late.pth").write_bytes(file.read_bytes()[:80].split(b"}")[0] + array)
        for name in ("tar.pth", "array.pth", "late.pth"):
            with pytest.raises(UserError, match=rf"{name}: cannot be read as weights \(ValueError\)"):
                build_network("test_efficientnet", str(tmp_path / name), 1, 48, None, 0.0, {}, 7)

    def test_whose_pickles_have_no_end(self, tmp_path, monkeypatch):
        """Each million bytes take seconds to check."""
        monkeypatch.setattr(archive_check, "MAX_PICKLE", 100)
        torch.save([0] * 1000, tmp_path / "long.pth", _use_new_zipfile_serialization=False)
        with pytest.raises(ValueError, match=r"remain|exhausted"):
            archive_check.check_old_format(tmp_path / "long.pth")

    def test_a_packed_file_is_not_unpacked(self, tmp_path, monkeypatch):
        long = tarfile.TarInfo()
        long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2**22
        (tmp_path / "packed.pth").write_bytes(bz2.compress(long.tobuf(tarfile.GNU_FORMAT) + bytes(2**22)))
        unpacked = Mock(side_effect=OSError)
        monkeypatch.setattr(bz2, "BZ2File", unpacked)
        with pytest.raises(UserError, match=r"packed\.pth: cannot be read as weights \(ValueError\)"):
            build_network("test_efficientnet", str(tmp_path / "packed.pth"), 1, 48, None, 0.0, {}, 7)
        unpacked.assert_not_called()

    def test_whose_stem_has_other_axes(self, tmp_path):
        state = timm.create_model("test_efficientnet").state_dict()
        for wrong in (state["conv_stem.weight"].flatten(1), 5):
            torch.save({**state, "conv_stem.weight": wrong}, tmp_path / "flat.pth")
            with pytest.raises(UserError, match=r"flat\.pth: conv_stem\.weight is not a tensor of 4 axes"):
                build_network("test_efficientnet", str(tmp_path / "flat.pth"), 1, 48, None, 0.0, {}, 7)

    def test_that_would_execute_code(self, cli, tmp_path):
        torch.save({"conv_stem.weight": Trap(tmp_path / "sprung")}, tmp_path / "weights.pth")
        outcome = cli(*TINY, f"model.weights={tmp_path / 'weights.pth'}")
        assert_refused(outcome, tmp_path, "weights.pth: cannot be read as weights")
        assert not (tmp_path / "sprung").exists()
