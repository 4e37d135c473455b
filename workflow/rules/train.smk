# One run: a model, a task, a method, a recipe and a seed.


rule train:
    input:
        model=task_model,
        tokens=rules.prepare_tokens.output,
        budget=budget_of,
    output:
        result=f"{RUN}/train.json",
        adapter=directory(f"{RUN}/adapter"),
    log:
        f"{RUN}/log.txt",
    benchmark:
        f"{RUN}/train.tsv"
    priority: 1
    conda:
        "../../envs/train.yaml"
    threads: train_threads
    resources:
        gpu=planned("train", "gpu"),
        mem_mb=planned("train", "mem_mb"),
        runtime=planned("train", "runtime"),
        micro_batch=planned("train", "micro_batch"),
    params:
        config=CONFIG_FILE,
        values=train_values,
        code=stage_code("training", "adapters", "models", "metrics", "recompute"),
    # exec: a shell in between would die of a SIGTERM before its child has saved a checkpoint
    shell:
        "exec python -m lorasp train --config {params.config} --model {wildcards.model} --task {wildcards.task}"
        " --method {wildcards.method} --recipe {wildcards.recipe} --seed {wildcards.seed}"
        " --micro-batch {resources.micro_batch} --processes {resources.gpu} &> {log}"
