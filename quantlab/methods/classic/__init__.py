"""The baselines of the field: one step a row, GPTQ feedback along columns or rounding to nearest, general byte codecs."""

from quantlab.methods.method import Method, MethodOptions, Problem, Solver


class ClassicMethod:
    """GPTQ or round-to-nearest on grids with one step a row."""

    options = MethodOptions
    predictor = "diagonal"
    needs_products = True
    has_decoder = False

    def __init__(self, *, feeds_back: bool) -> None:
        """Set whether rounding errors are fed back (GPTQ) or each weight is rounded to nearest (RTN)."""
        self.feeds_back = feeds_back

    def solver(self, problem: Problem, options: MethodOptions) -> Solver:
        """Return a solver of the problem."""
        from quantlab.methods.classic.solver import ClassicSolver

        return ClassicSolver(problem, options, feeds_back=self.feeds_back)


METHODS: dict[str, Method] = {
    "gptq": ClassicMethod(feeds_back=True),
    "rtn": ClassicMethod(feeds_back=False),
}
