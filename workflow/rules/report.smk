# The page, its tables and figures; and a target for each table and task.


rule report:
    input:
        metrics=metrics_of(CELLS),
        profiles=PROFILES,
        audit="results/audit.json",
        simulated=AWAITED,
        benches=BENCHES,
    output:
        page=report(f"{REPORT}/report.html", caption="../report/report.rst", category="Report"),
        text=f"{REPORT}/report.md",
        results=f"{REPORT}/results.json",
        verdicts=f"{REPORT}/verdicts.json",
        tables=report(
            directory(f"{REPORT}/tables"),
            patterns=["{name}.csv"],
            caption="../report/tables.rst",
            category="Tables",
        ),
        figures=report(
            directory(f"{REPORT}/figures"),
            patterns=["{name}.svg"],
            caption="../report/figures.rst",
            category="Figures",
        ),
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/logs/report.tsv"
    conda:
        "../../envs/report.yaml"
    params:
        config=CONFIG_FILE,
        values=fingerprint(CONFIG),
        code=stage_code("report", "claims", "config", "planning", "bench", "budget_words"),
    shell:
        "python -m lorasp report --config {params.config} &> {log}"


for table in sorted({table_of(run) for run in CELLS}):

    rule:
        name:
            f"table{table}"
        input:
            metrics_of(run for run in CELLS if table_of(run) == table),
            audit="results/audit.json",
        log:
            f"{RESULTS}/logs/table{table}.log",
        conda:
            "../../envs/report.yaml"
        params:
            config=CONFIG_FILE,
        shell:
            "python -m lorasp report --config {params.config} 2>&1 | tee {log}"


for task in sorted({run.task for run in CELLS}):

    rule:
        name:
            task
        input:
            metrics_of(run for run in CELLS if run.task == task),
            audit="results/audit.json",
        log:
            f"{RESULTS}/logs/{task}.log",
        conda:
            "../../envs/report.yaml"
        params:
            config=CONFIG_FILE,
        shell:
            "python -m lorasp report --config {params.config} 2>&1 | tee {log}"
