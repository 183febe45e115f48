from __future__ import annotations

import pytest

from repo_builder.core import assets
from repo_builder.core.errors import RepoBuilderError


def test_the_folders_of_a_checkout_are_found() -> None:
    assert (assets.template_folder() / "config.pbtxt.j2").is_file()
    assert (assets.deploy_folder() / "constraints").is_dir()


def test_shipped_files_are_found_by_kind_and_name() -> None:
    assert assets.packaged("recipes", "vgg.toml").is_file()
    with pytest.raises(RepoBuilderError, match=r"no weights file 'nothing\.safetensors'"):
        assets.packaged("weights", "nothing.safetensors")
