"""What httpx's own tests show of our client is told to users: `make httpx-suite` runs them, docs/httpx.md tells."""

from __future__ import annotations

import pytest

from tests.documents import ROOT
from tests.httpx_suite.differences import DIFFERENCES, Difference

PAGE = (ROOT / "docs" / "httpx.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.tests[0])
def test_a_difference_from_httpx_is_told_with_the_option_that_ends_it(difference: Difference) -> None:
    (line,) = (line for line in PAGE if difference.reason in line)
    for option, value in difference.options.items():
        assert f"`{option}={value}`" in line
