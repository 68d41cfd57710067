"""A plugin file for `--plugin`: methods that meet trouble in the middle of a run."""

import os
import signal
import time

from pydantic import Field

from attnctl.controller import Controller
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, MethodConfig, Source


class Trouble(EditMethod):
    """Base: an action at the end of one step."""

    class Config(MethodConfig):
        """When it happens."""

        step: int = Field(1, ge=0, description="The step.")

    def plan(self, request, model):
        prompt = request.source_prompt or ""
        inversion = InversionSpec(request.inversion or "ddim", prompt) if request.real else None
        return EditPlan(Source(prompt), (Controller(name="trouble", on_step_end=self._at),), inversion)

    def _at(self, call):
        return self.act(call) if call.step.index == self.config.step else call.latents["self"]


class Interrupt(Trouble):
    name = "interrupt"
    summary = "Ctrl-C."

    def act(self, call):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the signal is handled between two instructions of Python
            time.sleep(0.01)
        raise AssertionError("not interrupted")


class NotANumber(Trouble):
    name = "nan"
    summary = "Latents become NaN."

    def act(self, call):
        return call.latents["self"] * float("nan")


class Bug(Trouble):
    name = "bug"
    summary = "A bug in a plugin."

    def act(self, call):
        return call.latents["self"] / 0 + {}["missing"]


class TooMuch(Trouble):
    name = "too-much"
    summary = "Asks for more memory than any machine has."

    def act(self, call):
        return call.latents["self"].new_empty((2**40, 2**10))


class Nothing(Trouble):
    name = "nothing"
    summary = "Leaves the latents as they are: a silent no-op."

    def act(self, call):
        return call.latents["self"]


@hookimpl
def attnctl_methods():
    return [Interrupt, NotANumber, Bug, TooMuch, Nothing]
