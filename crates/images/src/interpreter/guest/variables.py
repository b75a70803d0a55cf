"""Variables of the environment that code is to have: set before it runs and set back afterwards, within its turn."""

import contextlib
import json
import os
import shlex
import tempfile

import kernels
from output import Outputs

# Sets variables that lie in the folder $FOLDER, and says there what they were: whatever is executed stays in the interpreter's
# history, where later code would find the values.
SET_PYTHON = """
def __cove_set(folder):
    import json, os
    with open(folder + "/asked") as file:
        asked = json.load(file)
    with open(folder + "/before", "w") as file:
        json.dump({name: os.environ.get(name) for name in asked}, file)
    os.environ.update(asked)
try:
    __cove_set($FOLDER)
finally:
    del __cove_set
"""
SET_NODE = """{
    const fs = require("fs"), asked = JSON.parse(fs.readFileSync($FOLDER + "/asked", "utf8"));
    const before = Object.keys(asked).map((name) => [name, process.env[name] ?? null]);
    fs.writeFileSync($FOLDER + "/before", JSON.stringify(Object.fromEntries(before)));
    Object.assign(process.env, asked);
    undefined;
}"""
SET_SHELL = "declare -p $NAMES >$FOLDER/before 2>/dev/null; . $FOLDER/asked"
# Sets back what they were before: $BEFORE.
RESTORE_PYTHON = """
for __cove_name, __cove_value in __import__("json").loads($BEFORE).items():
    if __cove_value is None:
        __import__("os").environ.pop(__cove_name, None)
    else:
        __import__("os").environ[__cove_name] = __cove_value
del __cove_name, __cove_value
"""
RESTORE_NODE = """for (const [name, value] of Object.entries(JSON.parse($BEFORE))) {
    if (value === null) delete process.env[name]; else process.env[name] = value;
}"""
VARIABLES = {"python": (SET_PYTHON, RESTORE_PYTHON), "node": (SET_NODE, RESTORE_NODE), "shell": (SET_SHELL, None)}
VARIABLES_WITHIN_SECONDS = 10


class Program:
    """A kernel with the variables that were asked for: some for all that it runs, some for one piece of code alone.

    Within a turn, so that no other code sees them. What could not be set back is set back before the next code runs.
    """

    def __init__(self, kind, kernel):
        self._kind, self._kernel = kind, kernel
        self._set_code, self._restore_code = VARIABLES[kind]
        self._begin()

    def _begin(self):
        """A new interpreter has none of them."""
        self._has_lasting, self._to_restore = False, None

    def run(self, code, outputs, seconds, env=None, lasting=None):
        self._restore()
        if lasting and not self._has_lasting:
            self._set(lasting)
            self._has_lasting, self._to_restore = True, None
        try:
            if env:
                self._set(env)
            return self._run(code, outputs, seconds)
        finally:
            self._restore()

    def _run(self, code, outputs, seconds):
        try:
            return self._kernel.run(code, outputs, seconds)
        except (kernels.Died, kernels.TimedOut) as ended:
            if getattr(ended, "restarted", True):
                self._begin()
            raise

    def _set(self, variables):
        with tempfile.TemporaryDirectory(prefix="cove-") as folder:
            with open(os.path.join(folder, "asked"), "w", encoding="utf-8") as file:
                if self._kind == "shell":
                    file.write("".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))
                else:
                    json.dump(variables, file)
            code = self._set_code.replace("$FOLDER", json.dumps(folder)).replace("$NAMES", " ".join(variables))
            outputs = Outputs()
            try:
                self._run(code, outputs, VARIABLES_WITHIN_SECONDS)
            except kernels.TimedOut as late:
                if not late.restarted:
                    self._remember(variables, folder)
                raise
            self._remember(variables, folder)
            if outputs.error is not None or self._to_restore is None:
                raise RuntimeError("its variables could not be set")

    def _remember(self, variables, folder):
        """What variables were is there before the first of them is set."""
        with contextlib.suppress(OSError, ValueError):
            with open(os.path.join(folder, "before"), encoding="utf-8", errors="replace") as file:
                self._to_restore = self._restoring(variables, file.read())

    def _restoring(self, variables, before):
        """Code that makes variables what they were."""
        if self._kind == "shell":
            return f"unset {' '.join(variables)}\n{before}"
        # a JSON text in a JSON text is a literal in both languages
        return self._restore_code.replace("$BEFORE", json.dumps(json.dumps(json.loads(before))))

    def _restore(self):
        if self._to_restore is not None:
            self._run(self._to_restore, Outputs(), VARIABLES_WITHIN_SECONDS)
            self._to_restore = None
