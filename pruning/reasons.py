"""What another library says went wrong, as the `values` of an error of ours: one line, and all of it."""

_MOST = 600
"""Characters. What matters often stands after the first line: a list of what is allowed, the field that is wrong."""

_SILENT = (LookupError, AttributeError, TypeError, AssertionError, StopIteration, ArithmeticError)
"""Their text is a bare key or index, or a sentence about code: the kind is half of what they say."""


def reason_of(error: BaseException) -> str:
    """The message of `error` in one line, with the kind of error where the text alone says little."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if not text:
        cause = error.__cause__
        return kind if cause is None else f"{kind}: {reason_of(cause)}"
    if isinstance(error, _SILENT):
        text = f"{kind}: {text}"
    return text if len(text) <= _MOST else f"{text[:_MOST]} ..."
