"""docs/cli.md is what the command line says of itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

GENERATOR = Path(__file__).parents[2] / "docs" / "generate_cli.py"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse words its help in another way since Python 3.13")
def test_the_page_on_the_command_line_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), "run python docs/generate_cli.py"
