"""Weights & Biases: --config.writers.extra=wandb_tracker:WandB, after `pip install wandb`."""

import hashlib

import wandb


class WandB:
    """Sends every record to one run of W&B for each workdir; its project is `vitattn-moe`."""

    def __init__(self, workdir, config):
        # The same workdir has the same id, so that a run that resumes goes on with its curves.
        self.run = wandb.init(
            project="vitattn-moe",
            name=workdir.name,
            id=hashlib.sha256(str(workdir).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(workdir),
            config=config,
        )
        # W&B's own step never goes back, as ours does where a run resumes from a checkpoint.
        self.run.define_metric("*", step_metric="step")

    def write(self, step, metrics):
        self.run.log({**metrics, "step": step})

    def summary(self, metrics):
        self.run.summary.update(metrics)

    def close(self):
        self.run.finish()
