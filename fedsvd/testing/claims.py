"""What the conformance kits for strategies and for adapters share."""


def measured(name: str, claim: str, declared: bool, found: bool, sentence: str) -> None:
    """Raise AssertionError unless the claim is what was found; `sentence` says it in words."""
    if declared and not found:
        raise AssertionError(
            f"{name} declares {claim} = True, but it is not so that it {sentence}."
        )
    if found and not declared:
        raise AssertionError(f"{name} declares {claim} = False, but it {sentence}.")
