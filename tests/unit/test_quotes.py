"""Figures on the pages are those of benchmarks/results."""

from __future__ import annotations

import re

import pytest

from benchmarks.quotes import ROOT, Quote, quotes


@pytest.mark.parametrize("quote", quotes(), ids=lambda quote: f"{quote.page}: {quote.sentence.strip()[:50]}")
def test_a_page_quotes_what_was_measured(quote: Quote) -> None:
    page = (ROOT / quote.page).read_text()
    assert quote.put_into(page) == page, "python -m benchmarks.quotes writes the figures of benchmarks/results"


def test_figures_are_replaced_where_the_sentence_is_wrapped() -> None:
    quote = Quote("a page", "is {} times faster than {} s", ["1.25", "3,000"])
    assert quote.put_into("It is 9.9 times\nfaster than 4e-3 s.") == "It is 1.25 times\nfaster than 3,000 s."
    with pytest.raises(ValueError, match=re.escape("a page has 0 times, not once: is {} times faster")):
        quote.put_into("It is fast.")
