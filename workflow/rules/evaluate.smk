# The scores of one run.


rule evaluate:
    input:
        result=rules.train.output.result,
        adapter=rules.train.output.adapter,
        data=task_datasets,
        budget=budget_of,
    output:
        f"{RUN}/metrics.json",
    log:
        f"{RUN}/evaluate.txt",
    benchmark:
        f"{RUN}/evaluate.tsv"
    priority: 1
    conda:
        "../../envs/evaluate.yaml"
    threads: THREADS
    resources:
        gpu=planned("evaluate", "gpu"),
        mem_mb=planned("evaluate", "mem_mb"),
        runtime=planned("evaluate", "runtime"),
    params:
        config=CONFIG_FILE,
        values=evaluate_values,
        code=stage_code("evaluation", "metrics", "models"),
    shell:
        "python -m lorasp evaluate --config {params.config} --model {wildcards.model} --task {wildcards.task}"
        " --method {wildcards.method} --recipe {wildcards.recipe} --seed {wildcards.seed} &> {log}"
