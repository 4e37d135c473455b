# Memory and operations of training steps at the paper's scale, on fake tensors: the same for every scale.
# What the runs need has a higher priority.


rule simulate:
    output:
        "results/simulated/{model}/{method}.json",
    log:
        "results/simulated/{model}/{method}.log",
    benchmark:
        "results/simulated/{model}/{method}.tsv"
    conda:
        "../../envs/plan.yaml"
    params:
        config=SIMULATED_FILE,
        values=simulate_values,
        code=stage_code(*steps.CODE, "profiling/simulations", "profiling/cells"),
        libraries=steps.libraries(),
    shell:
        "python -m lorasp simulate --config {params.config} --model {wildcards.model}"
        " --method {wildcards.method} --planned &> {log}"


rule simulated:
    input:
        SIMULATIONS,
