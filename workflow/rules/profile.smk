# Step time, memory and bytes of states, measured on this machine.


rule profile:
    input:
        model=task_model,
        budget=size_of,
    output:
        f"{RESULTS}/profile/{{model}}/{{method}}.json",
    log:
        f"{RESULTS}/profile/{{model}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/profile/{{model}}/{{method}}.tsv"
    priority: 1
    conda:
        "../../envs/profile.yaml"
    threads: os.cpu_count()
    resources:
        gpu=planned("profile", "gpu"),
        mem_mb=planned("profile", "mem_mb"),
        runtime=planned("profile", "runtime"),
    params:
        config=CONFIG_FILE,
        values=profile_values,
        code=stage_code("profiling", "adapters", "models", "recompute"),
    shell:
        "python -m lorasp profile --config {params.config} --model {wildcards.model}"
        " --method {wildcards.method} &> {log}"
