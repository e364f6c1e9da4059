"""Launching on Cloud TPU VMs through `gcloud`: the command `lm tpu`.

    spec        what is asked for, as JSON in the bucket
    gcloud      runs gcloud; errors in one line each
    store       the launch's files in WORKDIR, which is all of its state
    bundle      the repository at its commit, sent to WORKDIR
    bootstrap   the script that every VM runs at every boot
    resources   queued resources and their nodes: make, wait, delete
    controller  a small VM that watches where no laptop has to stay open
    watch       makes the resource again when it is preempted
    status      what is there, how far the run is
    command     argparse

Of gcloud only what Google documents is used; each module names the pages.
"""
