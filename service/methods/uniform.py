"""The same retention in every layer: needs no data, so it answers every feasible target."""

from pruning.allocators.methods import Method
from pruning.allocators.uniform import uniform_choice
from service.methods.family import Answer, Candidate, Question


class UniformMethod:
    """The MethodFamily of `uniform`."""

    def find(self, method: Method, question: Question) -> Candidate:  # noqa: ARG002
        """Always there."""
        return Candidate(None, lambda: _answer(question))


def _answer(question: Question) -> Answer:
    limits = question.limits
    return Answer(limits.space.architecture(uniform_choice(limits)))
