# What each job will take of devices, memory and time. A run makes it by itself before its first job;
# this rule is for asking.


rule plan:
    input:
        plan_needs,
    output:
        PLAN,
    log:
        f"{RESULTS}/logs/plan.log",
    benchmark:
        f"{RESULTS}/logs/plan.tsv"
    conda:
        "../../envs/plan.yaml"
    threads: os.cpu_count()
    params:
        config=CONFIG_FILE,
        gpu=PLAN_GPU,
        values=lookup.made_from(CONFIG),
    shell:
        "python -m lorasp plan --config {params.config} {params.gpu} --out {output} &> {log}"
