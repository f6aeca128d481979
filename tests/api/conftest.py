"""One tiny run that ``fl.train`` made, shared by all tests of the API."""

import pytest
from command_line import TINY

import fer_lightning as fl


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> fl.Run:
    return fl.train(TINY, folder=tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="session")
def classifier(run: fl.Run) -> fl.Classifier:
    return fl.load(run, device="cpu")
