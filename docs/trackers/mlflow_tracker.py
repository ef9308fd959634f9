"""MLflow: --config.writers.extra=mlflow_tracker:MLflow, after `pip install mlflow-skinny`."""

import mlflow


class MLflow:
    """Sends every record to one run of MLflow for each workdir; MLFLOW_TRACKING_URI says where."""

    def __init__(self, workdir, config):
        saved = workdir / "mlflow_run_id.txt"  # a run that resumes goes on with it
        mlflow.set_experiment("vitattn-moe")
        run = mlflow.start_run(
            run_id=saved.read_text() if saved.exists() else None, run_name=workdir.name
        )
        saved.write_text(run.info.run_id)
        mlflow.log_dict(config, "config.json")  # parameters of MLflow could not change on a resume

    def write(self, step, metrics):
        mlflow.log_metrics(metrics, step=step)

    def close(self):
        mlflow.end_run()
