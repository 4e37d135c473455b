# What needs no training: the papers' arithmetic, counts, equations and labels, at full scale.


rule audit:
    input:
        claims=[claims_file(name) for name in CONFIG["claims"]],
        models=public_models.FILE,
    output:
        "results/audit.json",
    log:
        f"{RESULTS}/logs/audit.log",
    benchmark:
        f"{RESULTS}/logs/audit.tsv"
    conda:
        "../../envs/plan.yaml"
    params:
        claims=CONFIG["claims"],
        code=stage_code("claims", "public_models", "tasks"),
    shell:
        "python -m lorasp audit --claims {params.claims:q} --out {output} &> {log}"
