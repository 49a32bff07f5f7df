"""A W&B run. Each attempt of a training run first logs the records of earlier attempts.

So one offline folder holds the whole run, each step once: `wandb sync` uploads each folder of a run
from its first line, over the server's data, so the last folder must hold the earlier records too.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from infnet_dist.config.run import TrackingConfig

REPLACED = "replaced"
_WAIT_S = 30.0  # for the server, at the start and at the end of a run
Mode = Literal["online", "offline", "disabled"]
log = logging.getLogger("infnet_dist")


class WandbRun:
    """A W&B run, online or offline; a tracker.

    Args:
        config: mode and project.
        folder: of the offline files.
        run_id: the same in each attempt of a run.
        settings: the resolved config, shown with the run.
        before: records of earlier attempts: step, examples and metrics. Records that the server has
            are skipped.
    """

    def __init__(
        self,
        config: TrackingConfig,
        *,
        folder: Path,
        run_id: str,
        settings: dict[str, Any],
        before: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._project, self._folder, self._run_id = config.project, folder, run_id
        self._settings = settings
        self._run = self._open(wandb_mode(config.wandb))
        first = self._run.starting_step if before else 0  # of a resumed run
        for record in before:
            if record["step"] >= first:
                metrics = {k: v for k, v in record.items() if k not in ("step", "examples")}
                self.log(metrics, step=record["step"], examples=record["examples"])
        if self._run.offline:
            self._set_aside()

    def log(self, metrics: dict[str, Any], *, step: int, examples: int) -> None:
        """Log against `step`; W&B ignores a step that it has."""
        self._run.log({**metrics, "examples": examples}, step=step)

    def finish(self) -> str | None:
        """Close the run; returns its URL, or its folder if offline or without an answer in time."""
        import wandb

        folder = str(Path(self._run.dir).parent)
        place = folder if self._run.offline else self._run.url
        try:
            self._run.finish()
        except TimeoutError as error:
            log.warning("W&B doesn't answer (%s); later: `%s`", error, self._later(folder))
            place = folder
        # W&B's service holds the last step back until a run finishes, and writes the end of the
        # run's file after `finish` has returned; processes of ours end without its exit handlers.
        wandb.teardown()
        return place

    def _open(self, mode: Mode) -> Any:
        try:
            return self._start(mode)
        except Exception as error:
            if mode != "online":
                raise
            import wandb

            wandb.teardown(exit_code=1)  # or it takes the offline run for the failed one
            run = self._start("offline")
            log.warning(
                "W&B can't be reached (%s); logging offline; later: `%s`",
                " ".join(str(error).split()),
                self._later(str(Path(run.dir).parent)),
            )
            return run

    def _start(self, mode: Mode) -> Any:
        import wandb  # imported here: it takes seconds, which only rank 0 should spend

        return wandb.init(
            project=self._project,
            id=self._run_id,
            name=self._run_id,
            dir=str(self._folder),
            mode=mode,
            config=self._settings,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                init_timeout=_WAIT_S,
                finish_timeout=_WAIT_S,
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=1.0,  # a killed run loses a second, not 15
                console="off",
                silent=True,
            ),
        )

    def _later(self, folder: str) -> str:
        """The command that uploads the run later: from its metrics, or a report from its folder."""
        if (self._folder / "metrics.jsonl").exists():
            return f"infnet sync {self._folder}"
        return f"wandb sync --include-online {folder}"

    def _set_aside(self) -> None:
        """Move the offline folders of earlier attempts out of the way of `wandb sync`."""
        own = Path(self._run.dir).parent
        for file in own.parent.glob("offline-run-*/run-*.wandb"):
            if file.parent == own or file.name != f"run-{self._run_id}.wandb":
                continue
            try:
                (own.parent / REPLACED).mkdir(exist_ok=True)
                file.parent.rename(_free(own.parent / REPLACED / file.parent.name))
            except OSError as error:
                log.warning("W&B: can't move %s, of an earlier attempt (%s)", file.parent, error)


def _free(path: Path) -> Path:
    """An unused path of this name, with a number appended if needed."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.{number}")
    return found


def wandb_mode(wanted: str) -> Mode:
    """W&B's mode: `auto` is online with an API key, otherwise offline, without asking."""
    for mode in ("online", "offline", "disabled"):
        if mode == (os.environ.get("WANDB_MODE") if wanted == "auto" else wanted):
            return mode
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (
        netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")
    )
    return "online" if has_key else "offline"
