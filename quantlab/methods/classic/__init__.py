"""The baselines of the field: one step a row, GPTQ feedback along columns or rounding to nearest, general byte codecs."""

from typing import Literal

from quantlab.methods.method import Method, MethodOptions, Problem, Solver


class ClassicMethod:
    """GPTQ or round-to-nearest on grids with one step a row."""

    options = MethodOptions
    predictor = "diagonal"
    needs_products = True
    has_decoder = False

    def __init__(self, rounding: Literal["gptq", "rtn"], summary: str) -> None:
        self.rounding, self.summary = rounding, summary

    def solver(self, problem: Problem, options: MethodOptions) -> Solver:
        """Return a solver of the problem."""
        from quantlab.methods.classic.solver import ClassicSolver

        return ClassicSolver(problem, options, self.rounding)


METHODS: dict[str, Method] = {
    "gptq": ClassicMethod("gptq", "the GPTQ baseline"),
    "rtn": ClassicMethod("rtn", "round to nearest"),
}
