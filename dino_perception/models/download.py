"""Weights from huggingface.co, for those who ask: whole, verified, and with a sentence when access is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.fetch import DownloadError
from dino_perception.models.fetch import digest as sha256


def download(spec: BackboneSpec, folder: str | Path, source: str = "") -> Path:
    """Fetch the released weights of `spec` into `folder` and return the file.

    `source` is "huggingface" (the publisher's repository) or "timm" (a copy in timm's format); empty takes the
    publisher's where there is one. The access token is the one that huggingface_hub finds: `hf auth login` or HF_TOKEN.
    The file is compared with the sha256 that the repository states. Raises DownloadError.
    """
    sources = {name: repository for name in ("huggingface", "timm") if (repository := getattr(spec, name))}
    if not sources:
        where = "it comes with the package" if spec.access == "open" else f"ask for it at {spec.access}"
        raise DownloadError(f"{spec.id} is not on huggingface.co; {where}")
    if source and source not in sources:
        raise DownloadError(f"{spec.id} has no source '{source}'; accepted are {', '.join(sources)}")
    source = source or next(iter(sources))
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise DownloadError("downloading needs huggingface_hub: pip install huggingface_hub") from None
    repository = sources[source]
    folder = Path(folder).expanduser() / repository.rpartition("/")[2]
    try:
        listing = hub.HfApi().model_info(repository, files_metadata=True).siblings
        wanted = {f.rfilename: f for f in listing if _wanted(f.rfilename)}
        if not any(name.endswith(".safetensors") for name in wanted):
            raise DownloadError(f"{repository} holds no safetensors file")
        for name in wanted:
            hub.hf_hub_download(repository, name, local_dir=folder)
    except errors.GatedRepoError:
        others = [name for name in sources if name != source]
        other = f", or take the open copy with --source {others[0]}" if others else ""
        page = f"https://huggingface.co/{repository}"
        raise DownloadError(
            f"{repository} is gated: accept its licence at {page}, log in with 'hf auth login' and try again{other}"
        ) from None
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError):
        raise DownloadError(
            f"{repository} is not there, or your token may not see it; see https://huggingface.co/{repository}"
        ) from None
    except (OSError, errors.HfHubHTTPError) as error:
        raise DownloadError(f"{repository} cannot be fetched: {str(error).splitlines()[0]}") from None
    for name, file in wanted.items():
        if file.lfs and sha256(folder / name) != file.lfs.sha256:
            shutil.rmtree(folder)
            raise DownloadError(
                f"{name} of {repository} does not have the sha256 that the repository states; it was deleted, try again"
            )
    shards = [name for name in wanted if name.endswith(".safetensors")]
    return folder / shards[0] if len(shards) == 1 else folder


def _wanted(name: str) -> bool:
    return name in ("config.json", "preprocessor_config.json", "model.safetensors.index.json") or (
        name.endswith(".safetensors") and "/" not in name
    )
