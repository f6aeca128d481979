"""Upload of a run to the Hugging Face Hub."""

from pathlib import Path

from fer_lightning.runtime.errors import UserError, first_line
from fer_lightning.runtime.files import check_inside


def upload(folder: Path, card: str, picture: str, repo_id: str) -> str:
    """Upload card, checkpoint, scores and confusion matrix of a run to the Hugging Face Hub, in one commit.

    A repository that does not exist yet is created, private.

    Args:
        folder: of the run.
        card: the model card.
        picture: file name of the confusion matrix.
        repo_id: the repository.

    Returns:
        The address of the model's page.

    Raises:
        UserError: files are missing or links to elsewhere, there is no login, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token, utils

    files = {
        "best.ckpt": folder / "checkpoints" / "best.ckpt",
        "metrics.json": folder / "metrics.json",
        picture: folder / picture,
    }
    for file in files.values():
        if not file.is_file():
            raise UserError(f"{file}: is missing, so the run cannot be pushed; train it again")
        check_inside(file, folder)
    if get_token() is None:
        raise UserError("--push: you are not logged in to the Hugging Face Hub; run hf auth login, or set HF_TOKEN")
    operations = [CommitOperationAdd("README.md", card.encode())]
    operations += [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=True, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message="Model, scores and card")
    except utils.HFValidationError:
        raise UserError(f"--push={repo_id}: is not a repository name; give user/name") from None
    except utils.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        raise UserError(
            f"--push={repo_id}: the Hub refuses ({status}: {first_line(error)}); check name and token"
        ) from None
    except Exception as error:  # the Hub's client, its HTTP library and the network raise many kinds
        raise UserError(
            f"--push={repo_id}: the Hub cannot be reached ({first_line(error)}); check the network and try again"
        ) from error
    return str(address)
