"""Whether, when and with what a model's forward is compiled: what is wanted, and what proves right.

Owned by a runner. It asks before each forward; most of the time there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from transformers import PreTrainedModel

from outrider_runtime.errors import StartupError
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.compiled.proof import same_bits
from outrider_runtime.model.compiled.recipe import Recipe
from outrider_runtime.model.compiled.step import CompiledStep, UnusableStep
from outrider_runtime.model.compiled.workshop import CompilationFailed, Workshop
from outrider_runtime.model.kernels.mode import Quantization
from outrider_runtime.model.kv_storage import KVStorage
from outrider_runtime.model.rehearsal import Run

_log = structlog.get_logger(__name__)

_FORWARDS_BEFORE = 256
"""Forwards after which a service has shown that it will be used: compiling takes processor time."""


def choose(
    wanted: Compile,
    model: PreTrainedModel,
    run_model: Run,
    *,
    quantization: Quantization,
    storage: KVStorage,
    block_size: int,
    token_ids: Sequence[int],
    max_model_len: int,
) -> StepChoice:
    """Returns the choice for a model on the CPU kernels.

    Args:
        wanted: whether; not `OFF`.
        model: whose forward.
        run_model: runs one in Python.
        quantization: how the kernels hold its weights.
        storage: whose layers are used; its content is not.
        block_size: positions per block.
        token_ids: at least one, to make texts of.
        max_model_len: positions that the model has.

    Raises:
        StartupError: it is insisted on and cannot be had.
    """
    recipe = Recipe.of(
        model,
        quantization=quantization,
        block_size=block_size,
        kv_widths=[rows.shape[1] for rows in storage.layers],
    )

    def proves_right(step: CompiledStep) -> bool:
        return same_bits(
            [run_model, lambda batch, storage: step.run(step.inputs(batch, storage.layers))],
            storage=storage,
            block_size=block_size,
            token_ids=token_ids,
            max_model_len=max_model_len,
        )

    return StepChoice(model, recipe, wanted, proves_right=proves_right)


class StepChoice:
    """The compiled forward of a model, once there is one.

    Args:
        model: on the CPU kernels.
        recipe: what to compile.
        wanted: whether.
        proves_right: whether a compiled forward gives the model's own bits.

    Raises:
        StartupError: it is insisted on and cannot be had.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: Recipe,
        wanted: Compile,
        *,
        proves_right: Callable[[CompiledStep], bool],
    ) -> None:
        self._model = model
        self._recipe = recipe
        self._proves_right = proves_right
        self._workshop: Workshop | None = None
        self._forwards_left = _FORWARDS_BEFORE
        self._open = True  # whether there is anything to come
        self.step: CompiledStep | None = None
        """What to run; None: the model in Python."""
        self._place = recipe.place
        self._refusal = self._place.with_suffix(".refused")
        try:
            if self._place.exists():
                self._adopt(self._place)
            elif wanted is Compile.ON:
                self._adopt(Workshop(recipe, step_back=False).wait())
            elif self._refusal.exists():
                self._open = False  # tried before, in vain
                _log.info("forward_not_compiled", why=self._refusal.read_text())
        except CompilationFailed as failure:
            self._give_up(str(failure), again=failure.again)
        except OSError as fault:
            self._give_up(str(fault), again=True)
        if wanted is Compile.ON and self.step is None:
            raise StartupError("--compile on: the model cannot be compiled; the log says why")

    def look(self) -> None:
        """Start compiling when it is time, take what was compiled. Called before each forward."""
        if not self._open:
            return
        try:
            if self._workshop is not None:
                if (package := self._workshop.finished()) is not None:
                    self._adopt(package)
            elif self._forwards_left:
                self._forwards_left -= 1
            else:
                self._workshop = Workshop(self._recipe, step_back=True)
        except CompilationFailed as failure:
            self._give_up(str(failure), again=failure.again)
        except OSError as fault:
            self._give_up(str(fault), again=True)

    def _adopt(self, package: Path) -> None:
        """Take the compiled forward, if its bits are the model's."""
        self._open, self._workshop = False, None
        try:
            step = CompiledStep(package, self._model)
            if self._proves_right(step):
                self.step = step
                _log.info("forward_adopted", model=type(self._model).__name__)
                return
            why = "it does not give the same bits as the model run in Python"
        except (UnusableStep, RuntimeError) as fault:
            why = str(fault).partition("\n")[0]
        self._give_up(why, again=False)

    def _give_up(self, why: str, *, again: bool) -> None:
        """Leave it to Python. `again`: whether the next start should try once more."""
        self._open, self._workshop = False, None
        _log.warning("forward_rejected", model=type(self._model).__name__, why=why)
        if again:
            return
        with suppress(OSError):
            self._place.unlink(missing_ok=True)
            self._refusal.write_text(why)
