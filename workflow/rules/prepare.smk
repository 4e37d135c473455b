# Fetch or make data sets and models, and tokenise each task once for each model.


rule prepare_dataset:
    input:
        dataset_needs,
    output:
        DATA / "{dataset}" / "manifest.json",
    log:
        f"{RESULTS}/logs/prepare-{{dataset}}.log",
    benchmark:
        f"{RESULTS}/logs/prepare-{{dataset}}.tsv"
    priority: 1
    conda:
        "../../envs/prepare.yaml"
    params:
        config=CONFIG_FILE,
        entry=dataset_entry,
        code=stage_code("data"),
    shell:
        "python -m lorasp prepare --config {params.config} --dataset {wildcards.dataset} &> {log}"


rule prepare_model:
    input:
        model_needs,
    output:
        DATA / "models" / "{model}" / "manifest.json",
    log:
        f"{RESULTS}/logs/prepare-model-{{model}}.log",
    benchmark:
        f"{RESULTS}/logs/prepare-model-{{model}}.tsv"
    priority: 1
    conda:
        "../../envs/prepare.yaml"
    params:
        config=CONFIG_FILE,
        source=model_source,
        code=stage_code("data"),
    shell:
        "python -m lorasp prepare --config {params.config} --model {wildcards.model} &> {log}"


rule prepare_tokens:
    input:
        dataset=task_dataset,
        model=task_model,
    output:
        DATA / "tokens" / "{model}" / "{task}" / "manifest.json",
    log:
        f"{RESULTS}/logs/tokens-{{model}}-{{task}}.log",
    benchmark:
        f"{RESULTS}/logs/tokens-{{model}}-{{task}}.tsv"
    priority: 1
    conda:
        "../../envs/prepare.yaml"
    params:
        config=CONFIG_FILE,
        task=task_text,
        code=stage_code("data"),
    shell:
        "python -m lorasp prepare --config {params.config} --model {wildcards.model} --task {wildcards.task}"
        " &> {log}"


rule prepared:
    input:
        PREPARED,
