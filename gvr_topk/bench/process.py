# SPDX-License-Identifier: Apache-2.0
"""Other programs, which end with whatever they started when their time is over."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_group(
    command: Sequence[str],
    seconds: float,
    *,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[int | None, str]:
    """(exit code, output of both streams); the code is None where it took longer and was ended.

    variables: added to the environment.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(variables or {})},
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read().decode(errors="replace")
