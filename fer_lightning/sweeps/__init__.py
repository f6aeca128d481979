"""Sweeps: every job in a process of its own, failures isolated, resumable after any interruption, one table at the end.

Lightning starts the further ranks of a job with this process's command line. Inside a Hydra multirun that line is the
whole sweep, and its environment variables leak into the next job, which gives wrong results without an error
(Lightning #11300).
Here the sweep's process imports no torch; each job runs as one plain ``python -m fer_lightning`` in its own process
group and folder, and is read back from its files. Without a GPU it is forked from a process that has made the imports.
Hydra's launchers only decide where and when ``run_job`` is called: here one after another, in worker processes
(joblib), or in the tasks of a SLURM job (submitit).
"""
