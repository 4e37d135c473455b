# The size, or the number of steps, with which a method has what another one has.


rule budget:
    input:
        model=task_model,
        profiles=budget_profiles,
        tokens=budget_tokens,
    output:
        f"{RESULTS}/budget/{{model}}/{{method}}.json",
    log:
        f"{RESULTS}/budget/{{model}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/budget/{{model}}/{{method}}.tsv"
    priority: 1
    conda:
        "../../envs/plan.yaml"
    params:
        config=CONFIG_FILE,
        values=budget_values,
        code=stage_code(*steps.CODE, "budgets", "budget_steps", "budget_words"),
        libraries=steps.libraries(),
    shell:
        "python -m lorasp budget --config {params.config} --model {wildcards.model}"
        " --method {wildcards.method} &> {log}"
